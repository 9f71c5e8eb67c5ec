// What the emulator reports: each fault ends the launch with a text that names the kernel, the
// block and the thread, and the next launch runs as if nothing had been.
#include <string>

#include "check.h"
#include "cuda/ptx.h"

namespace {

using slicellm::test::check_result;

// The fault of what was launched last, or "" for none.
std::string fault() {
  const cudaError_t error = cudaDeviceSynchronize();
  const std::string text = error == cudaSuccess ? "" : cudaGetErrorString(error);
  cudaGetLastError();
  CHECK(cudaDeviceSynchronize() == cudaSuccess);  // told once
  return text;
}

bool has(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) return true;
  std::fprintf(stderr, "\"%s\" lacks \"%s\"\n", text.c_str(), part.c_str());
  return false;
}

__global__ void exits_early() {
  if (threadIdx.x == 40) return;
  __syncthreads();
}

__global__ void two_barriers() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void barrier_or_shuffle(int* out) {
  if (threadIdx.x == 3) {
    __syncthreads();
  } else {
    out[0] = __shfl_xor_sync(0xffffffffu, 1, 1);
  }
}

__global__ void other_masks(int* out) {
  out[0] = __any_sync(threadIdx.x < 16 ? 0x0001ffffu : 0xffff8000u, 1);
}

__global__ void lane_missing() { __syncwarp(); }

void test_divergence() {
  SLICELLM_LAUNCH(exits_early, dim3(1, 2), 64, 0, nullptr);
  std::string text = fault();
  CHECK(has(text, "kernel exits_early, block (0,1,0), thread (0,0,0): divergent barrier"));
  CHECK(has(text, "__syncthreads (fault_test.cc:"));
  CHECK(has(text, "thread (40,0,0) has exited"));

  SLICELLM_LAUNCH(two_barriers, 1, 64, 0, nullptr);
  CHECK(has(fault(), "kernel two_barriers, block (0,0,0), thread"));

  int* out = nullptr;
  cudaMalloc(&out, 16);
  SLICELLM_LAUNCH(barrier_or_shuffle, 1, 32, 0, nullptr, out);
  text = fault();
  CHECK(has(text, "__shfl_xor_sync") && has(text, "thread (3,0,0) waits in __syncthreads"));
  SLICELLM_LAUNCH(other_masks, 1, 32, 0, nullptr, out);
  CHECK(has(fault(), "waits with another mask"));
  SLICELLM_LAUNCH(lane_missing, 1, 48, 0, nullptr);
  CHECK(has(fault(), "lane 16, which does not exist"));
  cudaFree(out);
}

__global__ void writes_shared(int index, int* out) {
  SLICELLM_SHARED(int, values, 10);
  values[index] = 1;
  __syncthreads();
  out[0] = values[0];
}

__global__ void reads_dynamic(int index, float* out) {
  SLICELLM_DYNAMIC_SHARED(float, values);
  out[threadIdx.x] = threadIdx.x == 5 ? values[index] : 0.0f;
}

__global__ void overflows_stack(int depth, int* out) {
  volatile char page[60000];
  for (int i = 0; i < 60000; i += 1000) page[i] = static_cast<char>(depth);
  if (depth > 0) overflows_stack(depth - 1, out);
  out[0] = page[5000];
}

__global__ void at(const float* address, float* out) { out[0] = *address; }

void test_memory() {
  int* out = nullptr;
  float* floats = nullptr;
  cudaMalloc(&out, 16);
  cudaMalloc(&floats, 40 * sizeof(float));
  SLICELLM_LAUNCH(writes_shared, 1, 32, 0, nullptr, 9, out);
  CHECK(fault().empty());
  SLICELLM_LAUNCH(writes_shared, 1, 32, 0, nullptr, 12, out);  // 10 integers end 8 bytes before it
  std::string text = fault();
  CHECK(has(text, "kernel writes_shared, block (0,0,0), thread (0,0,0): illegal memory access"));
  CHECK(has(text, "48 bytes into shared array values of 40 bytes"));
  SLICELLM_LAUNCH(writes_shared, 1, 32, 0, nullptr, 10, out);
  CHECK(has(fault(), "someone wrote beyond the end of shared array values"));
  SLICELLM_LAUNCH(writes_shared, 1, 32, 0, nullptr, -1, out);
  CHECK(has(fault(), "someone wrote before shared array values"));

  SLICELLM_LAUNCH(reads_dynamic, 1, 32, 64, nullptr, 16, floats);
  text = fault();
  CHECK(has(text, "thread (5,0,0): illegal memory access"));
  CHECK(has(text, "64 bytes into shared array dynamic shared memory of 64 bytes"));
  SLICELLM_LAUNCH(reads_dynamic, 1, 32, 64, nullptr, 15, floats);
  CHECK(fault().empty());

  SLICELLM_LAUNCH(at, 1, 1, 0, nullptr, floats + 40, floats);
  CHECK(has(fault(), "160 bytes into device memory of 160 bytes"));
  SLICELLM_LAUNCH(at, 1, 1, 0, nullptr, static_cast<const float*>(nullptr), floats);
  CHECK(has(fault(), "illegal memory access at"));
  SLICELLM_LAUNCH(overflows_stack, 1, 1, 0, nullptr, 3, out);
  CHECK(has(fault(), "below the thread's stack"));
  cudaFree(floats);
  SLICELLM_LAUNCH(at, 1, 1, 0, nullptr, floats, reinterpret_cast<float*>(out));
  CHECK(has(fault(), "illegal memory access at"));  // after free
  cudaFree(out);
}

__global__ void too_much_shared() {
  SLICELLM_SHARED(float, a, 8192);
  SLICELLM_SHARED(float, b, 8192);
  a[0] = b[0];
}
__global__ void nothing() {}

void test_limits() {
  SLICELLM_LAUNCH(too_much_shared, 1, 1, 0, nullptr);
  CHECK(has(fault(), "shared memory of 65536 static"));
  SLICELLM_LAUNCH(nothing, 1, 1025, 0, nullptr);
  CHECK(cudaGetLastError() == cudaErrorInvalidConfiguration);
  SLICELLM_LAUNCH(nothing, 0, 32, 0, nullptr);
  CHECK(cudaGetLastError() == cudaErrorInvalidConfiguration);
  SLICELLM_LAUNCH(nothing, 1, 32, 60000, nullptr);
  CHECK(cudaGetLastError() == cudaErrorInvalidValue);
  CHECK(cudaFuncSetAttribute(nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, 60000) ==
        cudaSuccess);
  SLICELLM_LAUNCH(nothing, 1, 32, 60000, nullptr);
  CHECK(cudaGetLastError() == cudaSuccess);
  CHECK(cudaFuncSetAttribute(nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, 200000) ==
        cudaErrorInvalidValue);
  cudaGetLastError();

  setenv("SLICELLM_SIMT_MEMORY", "1000", 1);
  size_t free = 0, total = 0;
  cudaMemGetInfo(&free, &total);
  CHECK(free == 1000 && total == 1000);
  void *some = nullptr, *more = nullptr;
  CHECK(cudaMalloc(&some, 600) == cudaSuccess);
  CHECK(cudaMalloc(&more, 600) == cudaErrorMemoryAllocation && more == nullptr);
  char host[700];
  CHECK(cudaMemcpy(host, some, 601, cudaMemcpyDeviceToHost) == cudaErrorInvalidValue);
  CHECK(cudaMemcpy(host, some, 600, cudaMemcpyHostToDevice) == cudaErrorInvalidMemcpyDirection);
  cudaFree(some);
  CHECK(cudaMalloc(&more, 600) == cudaSuccess);
  cudaFree(more);
  unsetenv("SLICELLM_SIMT_MEMORY");
  cudaGetLastError();
}

}  // namespace

int main() {
  test_divergence();
  test_memory();
  test_limits();
  return check_result();
}
