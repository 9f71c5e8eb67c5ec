#include "simt/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#if defined(__x86_64__)
asm(R"(
  .text
  .globl simt_switch
  .hidden simt_switch
  .type simt_switch, @function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size simt_switch, .-simt_switch
  .hidden simt_start
  .globl simt_start
  .type simt_start, @function
simt_start:
  movq %r12, %rdi
  callq *%r13
  ud2
  .size simt_start, .-simt_start
)");
#elif defined(__aarch64__)
asm(R"(
  .text
  .globl simt_switch
  .hidden simt_switch
  .type simt_switch, %function
simt_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
  .size simt_switch, .-simt_switch
  .globl simt_start
  .hidden simt_start
  .type simt_start, %function
simt_start:
  mov x0, x19
  blr x20
  brk #1
  .size simt_start, .-simt_start
)");
#else
#error "the SIMT emulator switches stacks on x86-64 and aarch64 only"
#endif

namespace simt {

extern "C" void simt_start();

void* prepare_stack(void* top, void (*entry)(void*), void* argument) {
  const auto start = reinterpret_cast<uintptr_t>(&simt_start);
  auto* slot = static_cast<uintptr_t*>(top);
#if defined(__x86_64__)
  // From below: r15, r14, r13, r12, rbx, rbp, return address, after which the stack is aligned.
  slot -= 7;
  slot[0] = slot[1] = slot[4] = slot[5] = 0;
  slot[2] = reinterpret_cast<uintptr_t>(entry);
  slot[3] = reinterpret_cast<uintptr_t>(argument);
  slot[6] = start;
#else
  slot -= 20;
  for (int i = 0; i < 20; ++i) slot[i] = 0;
  slot[0] = reinterpret_cast<uintptr_t>(argument);
  slot[1] = reinterpret_cast<uintptr_t>(entry);
  slot[11] = start;
#endif
  return slot;
}

StackPool::~StackPool() {
  for (std::byte* mapping : mappings_) munmap(mapping, kStacksPerMapping * kStackBytes);
}

void* StackPool::top(size_t i) {
  while (i >= mappings_.size() * kStacksPerMapping) {
    void* mapping = mmap(nullptr, kStacksPerMapping * kStackBytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) throw std::bad_alloc();
    mappings_.push_back(static_cast<std::byte*>(mapping));
    for (size_t s = 0; s < kStacksPerMapping; ++s) {
      mprotect(mappings_.back() + s * kStackBytes, kGuardBytes, PROT_NONE);
    }
  }
  // Tops at one distance from each other would all fall into a few sets of the caches.
  const size_t color = i % 61 * 256;
  return mappings_[i / kStacksPerMapping] + (i % kStacksPerMapping + 1) * kStackBytes - color;
}

bool StackPool::in_guard(const void* address) const {
  for (const std::byte* mapping : mappings_) {
    const auto offset = reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(mapping);
    if (offset < kStacksPerMapping * kStackBytes) return offset % kStackBytes < kGuardBytes;
  }
  return false;
}

}  // namespace simt
