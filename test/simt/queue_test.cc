// When the emulator does work that the host has started: as late as CUDA allows, and what nobody
// has ordered in the order that shows it.
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "cuda/kernel.h"
#include "simt/control.h"

namespace {

using slicellm::test::check_result;

__global__ void add(int* values, int amount) { values[threadIdx.x] += amount; }
__global__ void trap(int* values) {
  if (threadIdx.x == 1) values[threadIdx.x - 100] = 1;
}

struct Memory {
  Memory() {
    cudaMalloc(&device, 4 * sizeof(int));
    cudaMallocHost(&pinned, 4 * sizeof(int));
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  }
  ~Memory() {
    cudaFree(device);
    cudaFreeHost(pinned);
    cudaStreamDestroy(stream);
  }
  void to_device(const int* from) {
    CHECK(cudaMemcpyAsync(device, from, 16, cudaMemcpyHostToDevice, stream) == cudaSuccess);
  }
  void to_host(int* to) {
    CHECK(cudaMemcpyAsync(to, device, 16, cudaMemcpyDeviceToHost, stream) == cudaSuccess);
  }
  int* device = nullptr;
  int* pinned = nullptr;
  cudaStream_t stream = nullptr;
};

void test_pinned_is_read_late() {
  Memory m;
  for (int i = 0; i < 4; ++i) m.pinned[i] = i;
  m.to_device(m.pinned);
  m.pinned[2] = 50;  // too early: a mistake that must show
  int result[4] = {};
  m.to_host(result);  // not pinned: waited for
  CHECK(result[1] == 1 && result[2] == 50);
}

void test_small_pageable_is_read_at_once() {
  Memory m;
  int values[4] = {1, 2, 3, 4};
  m.to_device(values);
  values[0] = 9;
  CHECK(cudaStreamSynchronize(m.stream) == cudaSuccess);
  int result[4] = {};
  m.to_host(result);
  CHECK(result[0] == 1 && result[3] == 4);
}

void test_results_come_with_the_wait() {
  Memory m;
  cudaEvent_t first = nullptr, second = nullptr;
  cudaEventCreate(&first);
  cudaEventCreate(&second);
  CHECK(cudaEventSynchronize(first) == cudaSuccess);  // never recorded
  int* late = nullptr;
  cudaMallocHost(&late, 16);
  std::memset(late, 0, 16);
  std::memset(m.pinned, 0, 16);
  cudaMemsetAsync(m.device, 0, 16, m.stream);
  SLICELLM_LAUNCH(add, 1, 4, 0, m.stream, m.device, 5);
  m.to_host(m.pinned);
  cudaEventRecord(first, m.stream);
  SLICELLM_LAUNCH(add, 1, 4, 0, m.stream, m.device, 2);
  m.to_host(late);
  cudaEventRecord(second, m.stream);
  float milliseconds = 0;
  CHECK(cudaEventElapsedTime(&milliseconds, first, second) == cudaErrorNotReady);
  cudaGetLastError();
  CHECK(m.pinned[0] == 0 && late[0] == 0);
  CHECK(cudaEventSynchronize(first) == cudaSuccess);
  CHECK(m.pinned[3] == 5 && late[3] == 0);
  CHECK(cudaStreamSynchronize(m.stream) == cudaSuccess);
  CHECK(late[3] == 7);
  CHECK(cudaEventElapsedTime(&milliseconds, first, second) == cudaSuccess && milliseconds >= 0);
  cudaFreeHost(late);
  cudaEventDestroy(first);
  cudaEventDestroy(second);
}

void test_other_streams() {
  Memory a, b;
  std::memset(a.pinned, 0, 16);
  std::memset(b.pinned, 0, 16);
  cudaMemsetAsync(a.device, 1, 16, a.stream);
  a.to_host(a.pinned);
  cudaMemsetAsync(b.device, 2, 16, b.stream);
  b.to_host(b.pinned);
  CHECK(cudaStreamSynchronize(a.stream) == cudaSuccess);
  CHECK(a.pinned[0] == 0x01010101 && b.pinned[0] == 0);
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
  CHECK(b.pinned[0] == 0x02020202);
}

// A stream that writes and one that copies the result to the host, with and without a wait between
// them; which of the two the host waits for.
struct Pair {
  Pair(bool ordered, bool wait_for_copy) {
    std::memset(writer.pinned, 0, 16);
    cudaMemsetAsync(writer.device, 0, 16, writer.stream);
    cudaStreamSynchronize(writer.stream);
    SLICELLM_LAUNCH(add, 1, 4, 0, writer.stream, writer.device, 5);
    cudaEventCreateWithFlags(&written, cudaEventDisableTiming);
    cudaEventRecord(written, writer.stream);
    SLICELLM_LAUNCH(add, 1, 4, 0, writer.stream, writer.device, 100);  // after the event
    if (ordered) CHECK(cudaStreamWaitEvent(copier.stream, written, 0) == cudaSuccess);
    cudaMemcpyAsync(writer.pinned, writer.device, 16, cudaMemcpyDeviceToHost, copier.stream);
    cudaStreamSynchronize(wait_for_copy ? copier.stream : writer.stream);
    result = writer.pinned[0];
    left = simt_pending();
    cudaDeviceSynchronize();
    final = writer.pinned[0];
    CHECK(simt_pending() == 0);
    cudaEventDestroy(written);
  }
  Memory writer, copier;
  cudaEvent_t written = nullptr;
  size_t left = 0;
  int result = 0, final = 0;
};

void test_streams_that_wait() {
  setenv("SLICELLM_SIMT_ORDER", "late", 1);
  const Pair late(true, true);  // what comes after the event is left
  CHECK(late.result == 5 && late.left == 1 && late.final == 5);
  const Pair idle(true, false);  // nobody needs the copy: the wait and it are left
  CHECK(idle.result == 0 && idle.left == 2 && idle.final == 105);
  setenv("SLICELLM_SIMT_ORDER", "early", 1);
  const Pair first(true, false);  // as soon as the event is reached
  CHECK(first.result == 5 && first.left == 0 && first.final == 5);
  const Pair rest(true, true);  // the other stream comes first, to its end
  CHECK(rest.result == 105 && rest.left == 0);
}

void test_streams_that_should_wait() {
  setenv("SLICELLM_SIMT_ORDER", "late", 1);
  const Pair late(false, true);  // nothing has made the writer write
  CHECK(late.result == 0 && late.left == 3);
  const Pair after(false, false);  // the copy comes after all that the writer does
  CHECK(after.result == 0 && after.left == 1 && after.final == 105);
  setenv("SLICELLM_SIMT_ORDER", "early", 1);
  const Pair before(false, false);  // the copy comes before all that the writer does
  CHECK(before.result == 0 && before.left == 0 && before.final == 0);
}

// c waits for b, which waits for a; then a waits for c. An event stands for its last record before
// the wait, and one that was never recorded for nothing.
void test_chains_of_waits() {
  for (const char* order : {"late", "early"}) {
    setenv("SLICELLM_SIMT_ORDER", order, 1);
    Memory a, b, c;
    cudaEvent_t event = nullptr, never = nullptr;
    cudaEventCreate(&event);
    cudaEventCreate(&never);
    CHECK(cudaStreamWaitEvent(a.stream, never, 0) == cudaSuccess);
    CHECK(cudaStreamWaitEvent(a.stream, nullptr, 0) == cudaErrorInvalidResourceHandle);
    cudaMemsetAsync(a.device, 0, 16, a.stream);
    cudaEventRecord(event, a.stream);
    cudaStreamWaitEvent(b.stream, event, 0);
    SLICELLM_LAUNCH(add, 1, 4, 0, b.stream, a.device, 1);
    cudaEventRecord(event, b.stream);
    cudaStreamWaitEvent(c.stream, event, 0);
    cudaMemcpyAsync(c.pinned, a.device, 16, cudaMemcpyDeviceToHost, c.stream);
    cudaEventRecord(event, c.stream);
    cudaStreamWaitEvent(a.stream, event, 0);
    SLICELLM_LAUNCH(add, 1, 4, 0, a.stream, a.device, 10);
    a.to_host(a.pinned);
    cudaStreamDestroy(b.stream);  // with work in it
    b.stream = nullptr;
    cudaStreamCreateWithFlags(&b.stream, cudaStreamNonBlocking);
    CHECK(cudaStreamSynchronize(a.stream) == cudaSuccess);
    CHECK(c.pinned[3] == 1 && a.pinned[3] == 11);
    cudaGetLastError();
    cudaEventDestroy(event);
    cudaEventDestroy(never);
  }
  cudaStream_t blocking = nullptr;
  CHECK(cudaStreamCreateWithFlags(&blocking, 0) == cudaErrorInvalidValue);
  cudaGetLastError();
}

// Threads with streams of their own, which wait for each other in turn.
void test_threads() {
  constexpr int kThreads = 4, kRounds = 50;
  for (const char* order : {"late", "early"}) {
    setenv("SLICELLM_SIMT_ORDER", order, 1);
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([] {
        Memory a, b;
        cudaEvent_t event = nullptr;
        cudaEventCreate(&event);
        cudaMemsetAsync(a.device, 0, 16, a.stream);
        for (int round = 0; round < kRounds; ++round) {
          Memory& from = round % 2 == 0 ? a : b;
          Memory& to = round % 2 == 0 ? b : a;
          cudaEventRecord(event, from.stream);
          cudaStreamWaitEvent(to.stream, event, 0);
          SLICELLM_LAUNCH(add, 1, 4, 0, to.stream, a.device, round);
          if (round % 10 == 0) cudaEventSynchronize(event);
        }
        a.to_host(a.pinned);  // the last round was a's
        CHECK(cudaStreamSynchronize(a.stream) == cudaSuccess);
        CHECK(a.pinned[0] == kRounds * (kRounds - 1) / 2);
        cudaEventDestroy(event);
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
}

void test_a_fault_is_told_by_a_later_call() {
  Memory m;
  cudaMemsetAsync(m.device, 0, 16, m.stream);
  SLICELLM_LAUNCH(trap, 1, 4, 0, m.stream, nullptr);
  SLICELLM_LAUNCH(add, 1, 4, 0, m.stream, m.device, 5);  // dropped
  CHECK(cudaGetLastError() == cudaSuccess);              // nothing has run yet
  CHECK(cudaStreamSynchronize(m.stream) == cudaErrorLaunchFailure);
  const std::string text = cudaGetErrorString(cudaErrorLaunchFailure);
  CHECK(text.find("kernel trap, block (0,0,0), thread (1,0,0)") != std::string::npos);
  CHECK(cudaGetLastError() == cudaErrorLaunchFailure);
  CHECK(cudaGetLastError() == cudaSuccess);
  SLICELLM_LAUNCH(add, 1, 4, 0, m.stream, m.device, 3);
  int result[4] = {};
  m.to_host(result);
  CHECK(result[0] == 3);
}

}  // namespace

int main() {
  test_pinned_is_read_late();
  test_small_pageable_is_read_at_once();
  test_results_come_with_the_wait();
  test_other_streams();
  test_streams_that_wait();
  test_streams_that_should_wait();
  test_chains_of_waits();
  test_threads();
  test_a_fault_is_told_by_a_later_call();
  return check_result();
}
