#include "simt/graph.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "simt/control.h"
#include "simt/runtime.h"

using Work = std::vector<std::function<void()>>;

struct simtGraph {
  Work work;
};
struct simtGraphExec {
  Work work;
};

namespace {

struct Capture {
  std::thread::id thread;
  Work work;
  bool spoilt = false;
};

struct Captures {
  std::mutex mutex;
  std::map<cudaStream_t, Capture> by_stream;
};

Captures& captures() {
  static auto* instance = new Captures;  // outlives what is freed at exit
  return *instance;
}

}  // namespace

namespace simt {

bool record(cudaStream_t stream, std::function<void()>& work) {
  Captures& c = captures();
  const std::lock_guard lock(c.mutex);
  const auto found = c.by_stream.find(stream);
  if (found == c.by_stream.end()) return false;
  found->second.work.push_back(std::move(work));
  return true;
}

bool spoils_capture() {
  Captures& c = captures();
  const std::lock_guard lock(c.mutex);
  bool spoils = false;
  for (auto& [stream, capture] : c.by_stream) {
    if (capture.thread != std::this_thread::get_id()) continue;
    spoils = capture.spoilt = true;
  }
  return spoils;
}

bool spoils_capture(cudaStream_t stream) {
  Captures& c = captures();
  const std::lock_guard lock(c.mutex);
  const auto found = c.by_stream.find(stream);
  if (found == c.by_stream.end()) return false;
  return found->second.spoilt = true;
}

}  // namespace simt

using simt::result;

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  SIMT_MAY_FAIL(cudaErrorUnknown);
  if (!stream) return result(cudaErrorStreamCaptureUnsupported);
  if (mode != cudaStreamCaptureModeThreadLocal) return result(cudaErrorInvalidValue);
  Captures& c = captures();
  const std::lock_guard lock(c.mutex);
  const bool begun =
      c.by_stream.try_emplace(stream, Capture{std::this_thread::get_id(), {}}).second;
  return result(begun ? cudaSuccess : cudaErrorIllegalState);
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  Captures& c = captures();
  const std::lock_guard lock(c.mutex);
  const auto found = c.by_stream.find(stream);
  if (found == c.by_stream.end()) return result(cudaErrorIllegalState);
  if (found->second.thread != std::this_thread::get_id()) {
    return result(cudaErrorStreamCaptureWrongThread);
  }
  const Capture capture = std::move(found->second);
  c.by_stream.erase(found);
  SIMT_MAY_FAIL(cudaErrorUnknown);
  if (capture.spoilt) return result(cudaErrorStreamCaptureInvalidated);
  *graph = new simtGraph{capture.work};
  simt::count_handle(1);
  return result(cudaSuccess);
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = nullptr;
  SIMT_MAY_FAIL(cudaErrorUnknown);
  if (!graph) return result(cudaErrorInvalidValue);
  *exec = new simtGraphExec{graph->work};
  simt::count_handle(1);
  return result(cudaSuccess);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  SIMT_MAY_FAIL(cudaErrorUnknown);
  if (!exec) return result(cudaErrorInvalidValue);
  for (const auto& work : exec->work) simt::start(stream, work);
  return result(cudaSuccess);
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  simt::count_handle(-1);
  SIMT_MAY_FAIL(cudaErrorUnknown);
  return result(cudaSuccess);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  simt::count_handle(-1);
  SIMT_MAY_FAIL(cudaErrorUnknown);
  return result(cudaSuccess);
}
