#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <functional>
#include <string>

// The CUDA runtime with types that free what they hold and calls that throw: thin, nothing hidden.
namespace slicellm::cuda {

// Throws Error(resource) when `status` says that memory is out, Error(state) for everything else
// that went wrong, with the call's name and CUDA's own text. Clears CUDA's last error.
void check(cudaError_t status, const char* call);
#define SLICELLM_CUDA_CHECK(expression) ::slicellm::cuda::check((expression), #expression)
// CUDA's text for a status: "out of memory (cudaErrorMemoryAllocation)".
std::string text_of(cudaError_t status);

// The number of GPUs; 0 where there is no driver. `why` gets CUDA's text then.
int device_count(std::string* why = nullptr);

// What the host code asks of a GPU.
struct DeviceInfo {
  std::string name;  // "NVIDIA H100 80GB HBM3"
  int major = 0, minor = 0;
  int multiprocessors = 0;
  size_t memory = 0;            // bytes in all
  size_t shared_per_block = 0;  // bytes a block may ask for
  size_t l2_bytes = 0;
  bool integrated = false;  // shares the host's memory
};
DeviceInfo device_info(int device);

class Event;

// A queue of work on the device that was current when it was made.
class Stream {
 public:
  Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream();

  operator cudaStream_t() const { return stream_; }
  void synchronize() const;
  // Copies between host and device or within the device, in the stream's order. The host side must
  // stay as it is until the stream has passed the copy, unless it is not pinned.
  void copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) const;
  // What comes next waits until `event` is reached as it was recorded last, if it was.
  void wait(const Event& event) const;

 private:
  cudaStream_t stream_ = nullptr;
};

// A point in a stream that the host and other streams can wait for; two of them give a time.
class Event {
 public:
  Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event();

  operator cudaEvent_t() const { return event_; }
  void record(const Stream& stream) const;
  void synchronize() const;                        // returns at once if never recorded
  double seconds_since(const Event& start) const;  // both recorded and reached

 private:
  cudaEvent_t event_ = nullptr;
};

// Work that was recorded, to be started again and again with one call.
class Graph {
 public:
  Graph() = default;
  // Records what `work` starts on `stream` instead of starting it; nothing else does so meanwhile.
  // Throws what `work` throws, with the stream as it was before.
  Graph(const Stream& stream, const std::function<void()>& work);
  Graph(Graph&& other) noexcept { std::swap(exec_, other.exec_); }
  Graph& operator=(Graph&& other) noexcept {
    std::swap(exec_, other.exec_);
    return *this;
  }
  ~Graph();

  bool empty() const { return exec_ == nullptr; }
  void launch(const Stream& stream) const;

 private:
  cudaGraphExec_t exec_ = nullptr;
};

}  // namespace slicellm::cuda
