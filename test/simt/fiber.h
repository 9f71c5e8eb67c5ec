#pragma once

#include <cstddef>
#include <vector>

// Stacks that are switched by hand: what a call must preserve is pushed, the stack pointer is
// exchanged and the rest popped, a few nanoseconds in all. ucontext would make two system calls.
namespace simt {

// Saves the running stack in *save and goes on where `load` was saved.
extern "C" void simt_switch(void** save, void* load);

// A stack pointer for simt_switch that starts entry(argument) on the stack that ends at `top`.
// `entry` must not return.
void* prepare_stack(void* top, void (*entry)(void*), void* argument);

// Stacks of equal size, each above memory that faults. They stay until the pool is destroyed.
class StackPool {
 public:
  static constexpr size_t kGuardBytes = size_t{64} << 10;  // more than a frame should need
  static constexpr size_t kStackBytes = kGuardBytes + (size_t{128} << 10);

  StackPool() = default;
  StackPool(const StackPool&) = delete;
  StackPool& operator=(const StackPool&) = delete;
  ~StackPool();

  void* top(size_t i);  // 64-byte aligned
  bool in_guard(const void* address) const;

 private:
  static constexpr size_t kStacksPerMapping = 32;
  std::vector<std::byte*> mappings_;
};

}  // namespace simt
