#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <tuple>
#include <type_traits>
#include <utility>

#include "simt/block.h"

// What the macros of src/cuda/kernel.h become.
namespace simt {

// Checks the launch and queues it. Blocks will run one after the other, in an order that is not
// that of their index. `owner` keeps the grid's parameters.
void start_grid(const void* kernel, const Grid& grid, std::shared_ptr<const void> owner,
                cudaStream_t stream);

template <class... P, class... A>
void launch(const char* name, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
            cudaStream_t stream, A&&... arguments) {
  static_assert((std::is_convertible_v<A&&, P> && ...));
  struct Call {
    void (*kernel)(P...);
    std::tuple<std::decay_t<P>...> parameters;
  };
  auto call = std::make_shared<Call>(Call{kernel, {static_cast<P>(std::forward<A>(arguments))...}});
  const auto body = [](void* pointer) {
    auto& c = *static_cast<Call*>(pointer);
    std::apply(c.kernel, c.parameters);
  };
  start_grid(reinterpret_cast<const void*>(kernel),
             {name, grid, block, shared_bytes, body, call.get()}, call, stream);
}

inline void* dynamic_shared() { return current->block->dynamic_shared(); }

}  // namespace simt

// The address of a variable of the function tells declarations, and instances of a template, apart.
#define SIMT_SHARED(type, name, count)               \
  static char name##_key;                            \
  type(&name)[count] = *static_cast<type(*)[count]>( \
      ::simt::current->block->shared_array(&name##_key, #name, sizeof(type[count])))
