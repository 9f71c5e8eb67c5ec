#include "cuda/runtime.h"

#include "slicellm/error.h"

namespace slicellm::cuda {
std::string text_of(cudaError_t status) {
  return std::string(cudaGetErrorString(status)) + " (" + cudaGetErrorName(status) + ")";
}

void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  cudaGetLastError();
  const std::string name(call, std::string_view(call).find('('));
  const ErrorKind kind =
      status == cudaErrorMemoryAllocation ? ErrorKind::resource : ErrorKind::state;
  throw Error(kind, name, text_of(status), "a call that succeeds");
}

int device_count(std::string* why) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess) return count;
  cudaGetLastError();
  if (why != nullptr) *why = text_of(status);
  return 0;
}

DeviceInfo device_info(int device) {
  cudaDeviceProp properties;
  SLICELLM_CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
  DeviceInfo info;
  info.name = properties.name;
  info.major = properties.major;
  info.minor = properties.minor;
  info.multiprocessors = properties.multiProcessorCount;
  info.memory = properties.totalGlobalMem;
  info.shared_per_block = properties.sharedMemPerBlockOptin;
  info.l2_bytes = static_cast<size_t>(properties.l2CacheSize);
  info.integrated = properties.integrated != 0;
  return info;
}

Stream::Stream() {
  SLICELLM_CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
}

Stream::~Stream() {
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

void Stream::synchronize() const { SLICELLM_CUDA_CHECK(cudaStreamSynchronize(stream_)); }

void Stream::copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) const {
  if (bytes > 0) SLICELLM_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, kind, stream_));
}

void Stream::wait(const Event& event) const {
  SLICELLM_CUDA_CHECK(cudaStreamWaitEvent(stream_, event, 0));
}

Event::Event() { SLICELLM_CUDA_CHECK(cudaEventCreate(&event_)); }

Event::~Event() {
  if (event_ != nullptr) cudaEventDestroy(event_);
}

void Event::record(const Stream& stream) const {
  SLICELLM_CUDA_CHECK(cudaEventRecord(event_, stream));
}

void Event::synchronize() const { SLICELLM_CUDA_CHECK(cudaEventSynchronize(event_)); }

double Event::seconds_since(const Event& start) const {
  float milliseconds = 0;
  SLICELLM_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, start.event_, event_));
  return milliseconds * 1e-3;
}

Graph::Graph(const Stream& stream, const std::function<void()>& work) {
  // Other threads may go on to allocate and wait.
  SLICELLM_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  cudaGraph_t graph = nullptr;
  try {
    work();
  } catch (...) {
    if (cudaStreamEndCapture(stream, &graph) == cudaSuccess) cudaGraphDestroy(graph);
    cudaGetLastError();
    throw;
  }
  SLICELLM_CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  const cudaError_t status = cudaGraphInstantiate(&exec_, graph, 0);
  cudaGraphDestroy(graph);
  check(status, "cudaGraphInstantiate()");
}

Graph::~Graph() {
  if (exec_ != nullptr) cudaGraphExecDestroy(exec_);
}

void Graph::launch(const Stream& stream) const {
  SLICELLM_CUDA_CHECK(cudaGraphLaunch(exec_, stream));
}

}  // namespace slicellm::cuda
