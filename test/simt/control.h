#pragma once

#include <cstddef>
#include <cstdint>

// What a test can do to the emulated runtime, and ask of it. Exported from every module that holds
// the emulator, for ctypes (test/ops/emulator.py). Thread-safe.
extern "C" {
// Forgets all counts, the peak and the calling thread's last error (of a free that nobody asked
// about); the `nth` call of `function` from here on fails (0: none does). A launch of a kernel is
// called "launch".
void simt_fail(const char* function, uint64_t nth);
// Calls of `function` since simt_fail.
uint64_t simt_calls(const char* function);
// Most bytes on the device at any time since simt_fail.
size_t simt_device_peak();
// What has not been freed: bytes on the device and pinned, streams, events and graphs.
size_t simt_device_bytes();
size_t simt_pinned_bytes();
size_t simt_handles();
// Pieces of work that the host has started and that nothing has needed so far (queue.h).
size_t simt_pending();
}

namespace simt {

// Counts a call and tells whether it is the one to fail.
bool fails(const char* function);
void count_handle(int change);

}  // namespace simt
