#pragma once

#include <cstddef>
#include <string>

// Emulated device memory: host memory that starts as NaN and ends at a page that faults. Freed
// memory faults. Thread-safe.
namespace simt {

// 16-byte aligned (256 on hardware: the end of what kernels are given is watched instead). Null
// when the limit is reached. `bytes` > 0.
void* allocate_device(size_t bytes);
// False if `pointer` is not what allocate_device gave.
bool free_device(void* pointer);
// [pointer, pointer + bytes) lies within one allocation.
bool is_device(const void* pointer, size_t bytes);

// Host memory that copies read and write without staging. Starts as NaN.
void* allocate_pinned(size_t bytes);
bool free_pinned(void* pointer);
bool is_pinned(const void* pointer);

// For faults: "1024 bytes into device memory of 1024 bytes", empty for other addresses.
std::string describe_device_address(const void* address);

// Bytes; the environment variable SLICELLM_SIMT_MEMORY sets the limit (1 GiB), read at every call.
size_t device_memory_limit();
// SLICELLM_SIMT_INTEGRATED=1: the GPU shares the host's memory.
bool device_is_integrated();
size_t device_memory_used();
size_t device_memory_peak();  // the most that was used since forget_memory_peak
void forget_memory_peak();
size_t pinned_memory_used();

}  // namespace simt
