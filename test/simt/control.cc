#include "simt/control.h"

#include <cuda_runtime.h>

#include <atomic>
#include <map>
#include <mutex>
#include <string>

#include "simt/memory.h"
#include "simt/queue.h"

namespace {

struct Control {
  std::mutex mutex;
  std::map<std::string, uint64_t> calls;
  std::string function;
  uint64_t nth = 0;
  std::atomic<size_t> handles = 0;
};

Control& control() {
  static auto* instance = new Control;  // outlives what is freed at exit
  return *instance;
}

}  // namespace

#define SIMT_EXPORT extern "C" __attribute__((visibility("default")))

SIMT_EXPORT void simt_fail(const char* function, uint64_t nth) {
  cudaGetLastError();
  Control& c = control();
  const std::lock_guard lock(c.mutex);
  c.calls.clear();
  c.function = function;
  c.nth = nth;
  simt::forget_memory_peak();
}

SIMT_EXPORT uint64_t simt_calls(const char* function) {
  Control& c = control();
  const std::lock_guard lock(c.mutex);
  return c.calls[function];
}

SIMT_EXPORT size_t simt_device_peak() { return simt::device_memory_peak(); }
SIMT_EXPORT size_t simt_device_bytes() { return simt::device_memory_used(); }
SIMT_EXPORT size_t simt_pinned_bytes() { return simt::pinned_memory_used(); }
SIMT_EXPORT size_t simt_handles() { return control().handles; }
SIMT_EXPORT size_t simt_pending() { return simt::pending(); }

namespace simt {

bool fails(const char* function) {
  Control& c = control();
  const std::lock_guard lock(c.mutex);
  return ++c.calls[function] == c.nth && c.function == function;
}

void count_handle(int change) { control().handles += static_cast<size_t>(change); }

}  // namespace simt
