#pragma once

#include <cuda_runtime.h>

#include <tuple>
#include <type_traits>
#include <utility>

#include "simt/block.h"

// What the macros of src/cuda/kernel.h become.
namespace simt {

// Runs every block of the grid, one after the other, in an order that is not that of their index.
// Sets the error that cudaGetLastError() and the next synchronisation return.
void run_grid(const void* kernel, const Grid& grid);

template <class... P, class... A>
void launch(const char* name, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
            cudaStream_t /*stream*/, A&&... arguments) {
  static_assert((std::is_convertible_v<A&&, P> && ...));
  struct Call {
    void (*kernel)(P...);
    std::tuple<std::decay_t<P>...> parameters;
  } call{kernel, {static_cast<P>(std::forward<A>(arguments))...}};
  const auto body = [](void* pointer) {
    auto& c = *static_cast<Call*>(pointer);
    std::apply(c.kernel, c.parameters);
  };
  run_grid(reinterpret_cast<const void*>(kernel), {name, grid, block, shared_bytes, body, &call});
}

inline void* dynamic_shared() { return current->block->dynamic_shared(); }

}  // namespace simt

// The address of a variable of the function tells declarations, and instances of a template, apart.
#define SIMT_SHARED(type, name, count)               \
  static char name##_key;                            \
  type(&name)[count] = *static_cast<type(*)[count]>( \
      ::simt::current->block->shared_array(&name##_key, #name, sizeof(type[count])))
