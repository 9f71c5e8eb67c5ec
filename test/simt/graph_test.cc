// Stream capture as the emulator plays it, and the records of steps that the executor keeps.
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.h"
#include "cuda/kernel.h"
#include "cuda/memory.h"
#include "cuda/step_graphs.h"
#include "simt/control.h"

namespace {

using namespace slicellm::cuda;
using slicellm::test::check_result;

constexpr auto kMode = cudaStreamCaptureModeThreadLocal;

__global__ void add(int* values, int amount) { values[threadIdx.x] += amount; }

struct Counter {
  Counter() : memory(account, 4 * sizeof(int), "counter") {
    cudaMemsetAsync(memory.get(), 0, memory.bytes(), stream);
  }
  int* data() const { return memory.get<int>(); }
  int value() const {
    int values[4] = {};
    stream.copy(values, data(), sizeof(values), cudaMemcpyDeviceToHost);
    stream.synchronize();
    return values[3];
  }
  Stream stream;
  DeviceMemory account;
  DeviceBuffer memory;
};

void test_a_graph_runs_when_it_is_launched() {
  Counter c;
  const Stream recorded;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  CHECK(cudaStreamBeginCapture(recorded, kMode) == cudaSuccess);
  CHECK(cudaStreamBeginCapture(recorded, kMode) == cudaErrorIllegalState);
  SLICELLM_LAUNCH(add, 1, 4, 0, recorded, c.data(), 5);
  SLICELLM_LAUNCH(add, 1, 4, 0, c.stream, c.data(), 100);  // another stream goes on
  CHECK(cudaStreamEndCapture(recorded, &graph) == cudaSuccess);
  CHECK(cudaStreamEndCapture(recorded, &graph) == cudaErrorIllegalState && graph == nullptr);
  cudaGetLastError();
  CHECK(c.value() == 100);

  CHECK(cudaStreamBeginCapture(recorded, kMode) == cudaSuccess);
  SLICELLM_LAUNCH(add, 1, 4, 0, recorded, c.data(), 5);
  SLICELLM_LAUNCH(add, 1, 4, 0, recorded, c.data(), 1);
  CHECK(cudaStreamEndCapture(recorded, &graph) == cudaSuccess);
  CHECK(cudaGraphInstantiate(&exec, graph, 0) == cudaSuccess);
  CHECK(cudaGraphDestroy(graph) == cudaSuccess);
  CHECK(cudaGraphLaunch(exec, c.stream) == cudaSuccess);
  CHECK(cudaGraphLaunch(exec, c.stream) == cudaSuccess);
  CHECK(cudaGraphExecDestroy(exec) == cudaSuccess);  // what was launched still runs
  CHECK(c.value() == 112);
}

void test_what_spoils_a_capture() {
  const Counter c;
  const Stream recorded;
  const DeviceBuffer other(c.account, 16, "other");
  void* memory = nullptr;
  cudaEvent_t event = nullptr;
  cudaEventCreate(&event);
  const auto spoilt_by = [&](auto call) {
    CHECK(cudaStreamBeginCapture(recorded, kMode) == cudaSuccess);
    CHECK(call() == cudaErrorStreamCaptureUnsupported);
    cudaGraph_t graph = nullptr;
    CHECK(cudaStreamEndCapture(recorded, &graph) == cudaErrorStreamCaptureInvalidated);
    CHECK(graph == nullptr);
    cudaGetLastError();
    CHECK(cudaStreamSynchronize(recorded) == cudaSuccess);
  };
  spoilt_by([&] { return cudaMalloc(&memory, 16); });
  spoilt_by([&] { return cudaMallocHost(&memory, 16); });
  spoilt_by([&] { return cudaFree(other.get()); });
  spoilt_by([&] { return cudaStreamSynchronize(recorded); });
  spoilt_by([&] { return cudaDeviceSynchronize(); });
  spoilt_by([&] { return cudaEventRecord(event, recorded); });

  cudaGraph_t graph = nullptr;
  CHECK(cudaStreamBeginCapture(recorded, kMode) == cudaSuccess);
  std::thread([&] {  // other threads may do all that
    CHECK(cudaStreamEndCapture(recorded, &graph) == cudaErrorStreamCaptureWrongThread);
    CHECK(cudaMalloc(&memory, 16) == cudaSuccess && cudaFree(memory) == cudaSuccess);
    CHECK(cudaStreamSynchronize(c.stream) == cudaSuccess);
  })
      .join();
  CHECK(cudaStreamSynchronize(c.stream) == cudaSuccess);
  CHECK(cudaStreamEndCapture(recorded, &graph) == cudaSuccess);
  CHECK(cudaGraphDestroy(graph) == cudaSuccess);
  cudaEventDestroy(event);
}

void test_a_step_is_recorded_when_it_comes_again() {
  const Counter c;
  StepGraphs graphs;
  int launched = 0;
  const auto step = [&](uint64_t signature, int amount) {
    return graphs.run(c.stream, {signature}, [&](const Stream& on) {
      ++launched;
      SLICELLM_LAUNCH(add, 1, 4, 0, on, c.data(), amount);
    });
  };
  CHECK(!step(1, 1) && launched == 1);
  CHECK(!step(1, 1) && launched == 2);
  CHECK(step(1, 1) && launched == 2);
  CHECK(!step(2, 10) && step(1, 1) && launched == 3);
  CHECK(!step(2, 10) && step(2, 10) && step(1, 1) && launched == 4);
  CHECK(c.value() == 35);
}

void test_records_are_bounded() {
  const size_t handles = simt_handles();
  {
    const Counter c;
    StepGraphs graphs;
    const auto step = [&](uint64_t signature) {
      return graphs.run(c.stream, {signature},
                        [&](const Stream& on) { SLICELLM_LAUNCH(add, 1, 4, 0, on, c.data(), 1); });
    };
    for (uint64_t i = 0; i < 3 * StepGraphs::kMost; ++i) {
      step(0);  // used all the time: stays
      step(i + 1);
      step(i + 1);
      CHECK(step(i + 1));
      CHECK(i < 2 || step(0));
    }
    CHECK(simt_handles() == handles + 2 + StepGraphs::kMost);
    CHECK(!step(1) && step(0));
  }
  CHECK(simt_handles() == handles);
}

void test_a_capture_that_fails() {
  const size_t handles = simt_handles();
  {
    const Counter c;
    StepGraphs graphs;
    bool fails = false;
    const auto step = [&] {
      return graphs.run(c.stream, {7}, [&](const Stream& on) {
        SLICELLM_LAUNCH(add, 1, 4, 0, on, c.data(), 1);
        if (fails) throw std::runtime_error("no");
      });
    };
    CHECK(!step());
    fails = true;
    try {
      step();
      CHECK(false);
    } catch (const std::runtime_error&) {
    }
    CHECK(c.value() == 1);
    fails = false;
    CHECK(!step() && step());
    CHECK(c.value() == 3);
  }
  CHECK(simt_handles() == handles);
}

void test_a_step_that_cannot_be_recorded() {
  const size_t handles = simt_handles();
  {
    const Counter c;
    StepGraphs graphs;
    const auto step = [&](uint64_t signature) {
      return graphs.run(c.stream, {signature},
                        [&](const Stream& on) { SLICELLM_LAUNCH(add, 1, 4, 0, on, c.data(), 1); });
    };
    CHECK(!step(1));
    simt_fail("cudaGraphInstantiate", 1);
    CHECK(!step(1) && c.value() == 2);  // launched like the first
    CHECK(!step(1) && c.value() == 3);  // and not tried again
    CHECK(!step(2) && !step(2) && step(2) && c.value() == 6);
  }
  CHECK(simt_handles() == handles);
}

}  // namespace

int main() {
  test_a_graph_runs_when_it_is_launched();
  test_what_spoils_a_capture();
  test_a_step_is_recorded_when_it_comes_again();
  test_records_are_bounded();
  test_a_capture_that_fails();
  test_a_step_that_cannot_be_recorded();
  return check_result();
}
