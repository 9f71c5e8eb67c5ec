// When the emulator does work that the host has started: as late as CUDA allows.
#include <cstring>
#include <string>
#include <vector>

#include "check.h"
#include "cuda/kernel.h"

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
  test_a_fault_is_told_by_a_later_call();
  return check_result();
}
