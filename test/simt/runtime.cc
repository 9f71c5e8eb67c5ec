#include <cuda_runtime.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "simt/control.h"
#include "simt/fault.h"
#include "simt/graph.h"
#include "simt/launch.h"
#include "simt/memory.h"
#include "simt/queue.h"
#include "simt/runtime.h"

using Time = std::chrono::steady_clock::time_point;

struct simtStream {
  std::shared_ptr<simt::Queue> queue = simt::make_queue();
};
struct simtEvent {
  simt::Place place;  // of what it was recorded behind last, if it was
  std::shared_ptr<Time> time = std::make_shared<Time>();
};

namespace {

constexpr size_t kSharedDefault = size_t{48} << 10;
constexpr size_t kSharedOptIn = size_t{99} << 10;

thread_local cudaError_t last_error = cudaSuccess;
thread_local std::string last_fault;

// A call that spoils a capture of this thread.
#define SIMT_NOT_IN_CAPTURE() \
  if (simt::spoils_capture()) return result(cudaErrorStreamCaptureUnsupported)
// One that spoils the capture of `stream`.
#define SIMT_NOT_CAPTURED(stream) \
  if (simt::spoils_capture(stream)) return result(cudaErrorStreamCaptureUnsupported)

// The null stream has a queue like any other: no stream is made to wait for it.
const std::shared_ptr<simt::Queue>& queue_of(cudaStream_t stream) {
  static const auto* null_stream = new simtStream;  // outlives what is freed at exit
  return (stream ? stream : null_stream)->queue;
}

void finish(cudaStream_t stream) { simt::finish(simt::end_of(queue_of(stream))); }

// Kernels that may use more dynamic shared memory than the default.
struct DynamicLimits {
  std::mutex mutex;
  std::map<const void*, size_t> bytes;
};
DynamicLimits& dynamic_limits() {
  static DynamicLimits limits;
  return limits;
}

size_t dynamic_limit(const void* kernel) {
  DynamicLimits& limits = dynamic_limits();
  const std::lock_guard lock(limits.mutex);
  const auto found = limits.bytes.find(kernel);
  return found == limits.bytes.end() ? kSharedDefault : found->second;
}

}  // namespace

using simt::result;
using simt::start;

namespace simt {

cudaError_t result(cudaError_t error) {
  if (error == cudaSuccess && take_fault(last_fault)) error = cudaErrorLaunchFailure;
  if (error != cudaSuccess) last_error = error;
  return error;
}

Place start(cudaStream_t stream, std::function<void()> work) {
  if (record(stream, work)) return {};
  return enqueue(queue_of(stream), std::move(work));
}

namespace {

void run_grid(const Grid& grid) {
  catch_faults();
  const dim3 g = grid.grid;
  // A stride without a common factor visits every block, the last one first.
  const uint64_t blocks = uint64_t{g.x} * g.y * g.z;
  const uint64_t stride = blocks % 3 ? 3 : blocks % 5 ? 5 : blocks % 7 ? 7 : 1;
  uint64_t i = blocks - 1;
  for (uint64_t count = 0; count < blocks; ++count, i = (i + stride) % blocks) {
    const uint3 index{static_cast<unsigned>(i % g.x), static_cast<unsigned>(i / g.x % g.y),
                      static_cast<unsigned>(i / g.x / g.y)};
    std::string fault = local_block().run(grid, index);
    if (fault.empty()) continue;
    report_fault(std::move(fault));
    return;
  }
}

}  // namespace

void start_grid(const void* kernel, const Grid& grid, std::shared_ptr<const void> owner,
                cudaStream_t stream) {
  if (current) current->block->fail("a kernel that launches a kernel");
  if (fails("launch")) {
    result(cudaErrorUnknown);
    return;
  }
  const dim3 g = grid.grid, b = grid.block;
  const uint64_t threads = uint64_t{b.x} * b.y * b.z;
  if (threads == 0 || threads > 1024 || b.z > 64 || uint64_t{g.x} * g.y * g.z == 0 ||
      g.x > 0x7fffffffu || g.y > 0xffffu || g.z > 0xffffu) {
    result(cudaErrorInvalidConfiguration);
    return;
  }
  if (grid.dynamic_bytes > dynamic_limit(kernel)) {
    result(cudaErrorInvalidValue);
    return;
  }
  start(stream, [grid, owner] { run_grid(grid); });
}

}  // namespace simt

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidMemcpyDirection:
      return "cudaErrorInvalidMemcpyDirection";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorInvalidResourceHandle:
      return "cudaErrorInvalidResourceHandle";
    case cudaErrorIllegalState:
      return "cudaErrorIllegalState";
    case cudaErrorNotReady:
      return "cudaErrorNotReady";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    case cudaErrorStreamCaptureUnsupported:
      return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated:
      return "cudaErrorStreamCaptureInvalidated";
    case cudaErrorStreamCaptureWrongThread:
      return "cudaErrorStreamCaptureWrongThread";
    case cudaErrorUnknown:
      return "cudaErrorUnknown";
  }
  return "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidMemcpyDirection:
      return "invalid copy direction for memcpy";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorInvalidResourceHandle:
      return "invalid resource handle";
    case cudaErrorIllegalState:
      return "the operation cannot be performed in the present state";
    case cudaErrorNotReady:
      return "device not ready";
    case cudaErrorLaunchFailure:
      return last_fault.c_str();
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
      return "operation failed due to a previous error during capture";
    case cudaErrorStreamCaptureWrongThread:
      return "attempt to terminate a thread-local capture sequence from another thread";
    case cudaErrorUnknown:
      return "unknown error";
  }
  return "unrecognized error code";
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = cudaPeekAtLastError();
  last_error = cudaSuccess;
  return error;
}

cudaError_t cudaPeekAtLastError() {
  result(cudaSuccess);
  return last_error;
}

// ---- device -------------------------------------------------------------------------------------
cudaError_t cudaGetDeviceCount(int* count) {
  SIMT_MAY_FAIL(cudaErrorUnknown);
  *count = 1;
  return result(cudaSuccess);
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return result(cudaSuccess);
}

cudaError_t cudaSetDevice(int device) {
  SIMT_MAY_FAIL(cudaErrorUnknown);
  return result(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
  SIMT_MAY_FAIL(cudaErrorUnknown);
  if (device != 0) return result(cudaErrorInvalidDevice);
  *p = {};
  std::strcpy(p->name, "SIMT emulator");
  p->totalGlobalMem = simt::device_memory_limit();
  p->sharedMemPerBlock = kSharedDefault;
  p->sharedMemPerBlockOptin = kSharedOptIn;
  p->sharedMemPerMultiprocessor = size_t{100} << 10;
  p->totalConstMem = size_t{64} << 10;
  p->regsPerBlock = 65536;
  p->warpSize = 32;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsPerMultiProcessor = 1536;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 0x7fffffff;
  p->maxGridSize[1] = p->maxGridSize[2] = 0xffff;
  p->major = 8;
  p->minor = 0;
  p->multiProcessorCount = 4;
  p->l2CacheSize = 4 << 20;
  p->integrated = simt::device_is_integrated();
  return result(cudaSuccess);
}

cudaError_t cudaDeviceSynchronize() {
  SIMT_NOT_IN_CAPTURE();
  simt::finish_all();
  return result(cudaSuccess);
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  SIMT_MAY_FAIL(cudaErrorUnknown);
  const size_t used = simt::device_memory_used();
  *total = simt::device_memory_limit();
  *free = *total > used ? *total - used : 0;
  return result(cudaSuccess);
}

cudaError_t cudaDriverGetVersion(int* version) { return cudaRuntimeGetVersion(version); }

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 12060;
  return result(cudaSuccess);
}

// ---- memory -------------------------------------------------------------------------------------
cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  *pointer = nullptr;
  SIMT_MAY_FAIL(cudaErrorMemoryAllocation);
  SIMT_NOT_IN_CAPTURE();
  if (bytes == 0) return result(cudaSuccess);
  *pointer = simt::allocate_device(bytes);
  return result(*pointer ? cudaSuccess : cudaErrorMemoryAllocation);
}

cudaError_t cudaMallocManaged(void** pointer, size_t bytes, unsigned flags) {
  *pointer = nullptr;
  SIMT_MAY_FAIL(cudaErrorMemoryAllocation);
  SIMT_NOT_IN_CAPTURE();
  if (bytes == 0 || (flags != cudaMemAttachGlobal && flags != cudaMemAttachHost)) {
    return result(cudaErrorInvalidValue);
  }
  *pointer = simt::allocate_device(bytes);
  return result(*pointer ? cudaSuccess : cudaErrorMemoryAllocation);
}

cudaError_t cudaStreamAttachMemAsync(cudaStream_t, void* pointer, size_t bytes, unsigned flags) {
  SIMT_MAY_FAIL(cudaErrorUnknown);
  const bool whole = bytes == 0 && simt::is_device(pointer, 1);
  return result(whole && flags == cudaMemAttachGlobal ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaFree(void* pointer) {
  if (!pointer) return result(cudaSuccess);
  SIMT_NOT_IN_CAPTURE();
  simt::finish_all();
  const bool freed = simt::free_device(pointer);
  SIMT_MAY_FAIL(cudaErrorUnknown);
  return result(freed ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaMallocHost(void** pointer, size_t bytes) {
  *pointer = nullptr;
  SIMT_MAY_FAIL(cudaErrorMemoryAllocation);
  SIMT_NOT_IN_CAPTURE();
  *pointer = bytes > 0 ? simt::allocate_pinned(bytes) : nullptr;
  return result(*pointer || bytes == 0 ? cudaSuccess : cudaErrorMemoryAllocation);
}

cudaError_t cudaFreeHost(void* pointer) {
  if (!pointer) return result(cudaSuccess);
  SIMT_NOT_IN_CAPTURE();
  simt::finish_all();
  const bool freed = simt::free_pinned(pointer);
  SIMT_MAY_FAIL(cudaErrorUnknown);
  return result(freed ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  SIMT_NOT_IN_CAPTURE();
  const cudaError_t error = cudaMemcpyAsync(to, from, bytes, kind, nullptr);
  finish(nullptr);
  return result(error);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  SIMT_MAY_FAIL(cudaErrorUnknown);
  constexpr size_t kStagedAtOnce = size_t{64} << 10;
  if (bytes == 0) return result(cudaSuccess);
  const bool to_device = simt::is_device(to, bytes), from_device = simt::is_device(from, bytes);
  // The first byte tells which side an address belongs to; then all must lie in one allocation.
  if (simt::is_device(to, 1) != to_device || simt::is_device(from, 1) != from_device) {
    return result(cudaErrorInvalidValue);
  }
  if (kind != cudaMemcpyDefault &&
      (to_device != (kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice) ||
       from_device != (kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice))) {
    return result(cudaErrorInvalidMemcpyDirection);
  }
  // Memory that is not pinned: small sources are read now, everything else is waited for.
  const bool staged_now = !from_device && !simt::is_pinned(from) && bytes <= kStagedAtOnce;
  if (staged_now) {
    const auto* begin = static_cast<const std::byte*>(from);
    start(stream, [to, staged = std::vector<std::byte>(begin, begin + bytes)] {
      std::memcpy(to, staged.data(), staged.size());
    });
  } else {
    start(stream, [=] { std::memmove(to, from, bytes); });
  }
  if ((!to_device && !simt::is_pinned(to)) ||
      (!staged_now && !from_device && !simt::is_pinned(from))) {
    finish(stream);
  }
  return result(cudaSuccess);
}

cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  return cudaMemsetAsync(to, value, bytes, nullptr);
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  SIMT_MAY_FAIL(cudaErrorUnknown);
  if (bytes == 0) return result(cudaSuccess);
  if (!simt::is_device(to, bytes)) return result(cudaErrorInvalidValue);
  start(stream, [=] { std::memset(to, value, bytes); });
  return result(cudaSuccess);
}

// ---- streams and events -------------------------------------------------------------------------
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  SIMT_MAY_FAIL(cudaErrorUnknown);
  // The other kind, which the null stream waits for and which waits for it, is not played.
  if (flags != cudaStreamNonBlocking) return result(cudaErrorInvalidValue);
  *stream = new simtStream;
  simt::count_handle(1);
  return result(cudaSuccess);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  simt::count_handle(-1);
  SIMT_MAY_FAIL(cudaErrorUnknown);
  return result(cudaSuccess);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  SIMT_MAY_FAIL(cudaErrorUnknown);
  SIMT_NOT_CAPTURED(stream);
  finish(stream);
  return result(cudaSuccess);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
  SIMT_MAY_FAIL(cudaErrorUnknown);
  if (!event) return result(cudaErrorInvalidResourceHandle);
  if (flags != 0) return result(cudaErrorInvalidValue);
  SIMT_NOT_CAPTURED(stream);
  simt::enqueue_wait(queue_of(stream), event->place);
  return result(cudaSuccess);
}

cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  SIMT_MAY_FAIL(cudaErrorUnknown);
  *event = new simtEvent;
  simt::count_handle(1);
  return result(cudaSuccess);
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  simt::count_handle(-1);
  SIMT_MAY_FAIL(cudaErrorUnknown);
  return result(cudaSuccess);
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  SIMT_MAY_FAIL(cudaErrorUnknown);
  if (!event) return result(cudaErrorInvalidResourceHandle);
  SIMT_NOT_CAPTURED(stream);
  event->time = std::make_shared<Time>();
  event->place = start(stream, [time = event->time] { *time = std::chrono::steady_clock::now(); });
  return result(cudaSuccess);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  SIMT_MAY_FAIL(cudaErrorUnknown);
  if (!event) return result(cudaErrorInvalidResourceHandle);
  simt::finish(event->place);
  return result(cudaSuccess);
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  SIMT_MAY_FAIL(cudaErrorUnknown);
  if (!start || !end || !start->place.queue || !end->place.queue) {
    return result(cudaErrorInvalidResourceHandle);
  }
  if (*start->time == Time{} || *end->time == Time{}) return result(cudaErrorNotReady);
  *milliseconds = std::chrono::duration<float, std::milli>(*end->time - *start->time).count();
  return result(cudaSuccess);
}

// ---- kernels ------------------------------------------------------------------------------------
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  SIMT_MAY_FAIL(cudaErrorUnknown);
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return result(cudaSuccess);
  if (value < 0 || static_cast<size_t>(value) > kSharedOptIn) {
    return result(cudaErrorInvalidValue);
  }
  DynamicLimits& limits = dynamic_limits();
  const std::lock_guard lock(limits.mutex);
  limits.bytes[kernel] = static_cast<size_t>(value);
  return result(cudaSuccess);
}
