#include "simt/fault.h"

#include <signal.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>

#include "simt/block.h"
#include "simt/memory.h"

namespace simt {
namespace {

struct sigaction previous_segv, previous_bus;
thread_local const void* fault_address = nullptr;
thread_local bool fault_misaligned = false;

std::string in_hex(const void* address) {
  char text[32];
  std::snprintf(text, sizeof text, "%p", address);
  return text;
}

// Where a faulting thread goes on, on its own stack.
[[noreturn]] void report_fault() {
  Block& block = *current->block;
  if (fault_misaligned) block.fail("misaligned address");
  std::string where = block.describe_address(fault_address);
  if (where.empty()) where = describe_device_address(fault_address);
  block.fail("illegal memory access at " + (where.empty() ? in_hex(fault_address) : where));
}

void handle(int signal, siginfo_t* info, void* context) {
  if (!current) {  // not ours: the instruction faults again, under the earlier handler
    sigaction(signal, signal == SIGSEGV ? &previous_segv : &previous_bus, nullptr);
    return;
  }
  fault_address = info->si_addr;
  // x86-64 tells so of a misaligned vector (and of an address that is not canonical).
  fault_misaligned = signal == SIGSEGV ? info->si_code == SI_KERNEL : info->si_code == BUS_ADRALN;
  auto* machine = static_cast<ucontext_t*>(context);
  const auto stack = reinterpret_cast<uintptr_t>(current->block->stack_top(current->number));
  const auto target = reinterpret_cast<uintptr_t>(&report_fault);
#if defined(__x86_64__)
  machine->uc_mcontext.gregs[REG_RSP] = static_cast<greg_t>(stack - 8);  // as after a call
  machine->uc_mcontext.gregs[REG_RIP] = static_cast<greg_t>(target);
#else
  machine->uc_mcontext.sp = stack;
  machine->uc_mcontext.pc = target;
#endif
}

// Where this OS thread handles signals: the stack of a fiber may be what has run out.
class SignalStack {
 public:
  SignalStack() {
    stack_t old{};
    sigaltstack(nullptr, &old);
    if (!(old.ss_flags & SS_DISABLE)) return;
    memory_ = std::make_unique<std::byte[]>(kBytes);
    const stack_t mine{.ss_sp = memory_.get(), .ss_flags = 0, .ss_size = kBytes};
    sigaltstack(&mine, nullptr);
  }
  ~SignalStack() {
    if (!memory_) return;
    const stack_t none{.ss_sp = nullptr, .ss_flags = SS_DISABLE, .ss_size = 0};
    sigaltstack(&none, nullptr);
  }

 private:
  static constexpr size_t kBytes = size_t{64} << 10;
  std::unique_ptr<std::byte[]> memory_;
};

}  // namespace

void catch_faults() {
  static thread_local SignalStack stack;
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action {};
    action.sa_sigaction = &handle;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &previous_segv);
    sigaction(SIGBUS, &action, &previous_bus);
  });
}

}  // namespace simt
