// Barriers, shuffles, votes, atomics and shared memory of the emulator, against what CUDA's
// programming guide says of them.
#include <cstring>
#include <vector>

#include "check.h"
#include "cuda/kernel.h"

namespace {

using slicellm::test::check_result;

// Device memory for `count` values, copied back at the end.
template <class T>
class Values {
 public:
  explicit Values(size_t count) : host_(count) { cudaMalloc(&device_, count * sizeof(T)); }
  ~Values() { cudaFree(device_); }
  T* device() { return device_; }
  const std::vector<T>& fetch() {
    cudaMemcpy(host_.data(), device_, host_.size() * sizeof(T), cudaMemcpyDeviceToHost);
    return host_;
  }

 private:
  std::vector<T> host_;
  T* device_ = nullptr;
};

__global__ void indices(int* out) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  out[block * threads + thread] = static_cast<int>(1000 * block + thread);
}

void test_indices() {
  const dim3 grid(3, 2, 2), block(5, 3, 4);
  Values<int> out(12 * 60);
  SLICELLM_LAUNCH(indices, grid, block, 0, nullptr, out.device());
  CHECK(cudaGetLastError() == cudaSuccess);
  const auto& got = out.fetch();
  for (int b = 0; b < 12; ++b) {
    for (int t = 0; t < 60; ++t) CHECK(got[b * 60 + t] == 1000 * b + t);
  }
}

// Rotates values through shared memory, block-wide: wrong if a barrier lets anyone through early.
template <int kThreads>
__global__ void rotate(int* out, int rounds) {
  SLICELLM_SHARED(int, values, kThreads);
  SLICELLM_DYNAMIC_SHARED(int, more);
  const int i = static_cast<int>(threadIdx.x);
  values[i] = i;
  for (int r = 0; r < rounds; ++r) {
    __syncthreads();
    const int next = values[(i + 1) % kThreads];
    __syncthreads();
    values[i] = next;
  }
  more[i] = values[i];
  __syncthreads();
  out[i] = more[kThreads - 1 - i];
}

void test_barriers() {
  Values<int> out(96);
  SLICELLM_LAUNCH((rotate<96>), 1, 96, 96 * sizeof(int), nullptr, out.device(), 7);
  CHECK(cudaGetLastError() == cudaSuccess);
  const auto& got = out.fetch();
  for (int i = 0; i < 96; ++i) CHECK(got[i] == (95 - i + 7) % 96);
}

__global__ void shuffles(int* out) {
  const int lane = static_cast<int>(threadIdx.x);
  out[0 * 32 + lane] = __shfl_sync(0xffffffffu, 100 + lane, 5);
  out[1 * 32 + lane] = __shfl_sync(0xffffffffu, 100 + lane, 9, 8);  // 9 mod 8 of the segment
  out[2 * 32 + lane] = __shfl_up_sync(0xffffffffu, 100 + lane, 3, 16);
  out[3 * 32 + lane] = __shfl_down_sync(0xffffffffu, 100 + lane, 3, 16);
  out[4 * 32 + lane] = __shfl_xor_sync(0xffffffffu, 100 + lane, 17);
  float sum = static_cast<float>(lane);
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  out[5 * 32 + lane] = static_cast<int>(sum);
  // Halves of a warp on their own.
  const uint32_t half_warp = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  if (lane < 16) {
    out[6 * 32 + lane] = __shfl_sync(half_warp, lane, 2);
  } else {
    out[6 * 32 + lane] = __shfl_sync(half_warp, lane, 30);
  }
  out[7 * 32 + lane] = static_cast<int>(__ballot_sync(0xffffffffu, lane % 3 == 0));
  out[8 * 32 + lane] = 10 * __any_sync(0xffffffffu, lane == 7) + __all_sync(0xffffffffu, lane < 31);
  out[9 * 32 + lane] = __reduce_add_sync(0xffffffffu, lane) * 100 +
                       __reduce_max_sync(0xffffffffu, lane) - __reduce_min_sync(0xffffffffu, lane);
}

void test_shuffles() {
  Values<int> out(10 * 32);
  SLICELLM_LAUNCH(shuffles, 1, 32, 0, nullptr, out.device());
  CHECK(cudaGetLastError() == cudaSuccess);
  const auto& got = out.fetch();
  unsigned threes = 0;
  for (int lane = 0; lane < 32; lane += 3) threes |= 1u << lane;
  for (int lane = 0; lane < 32; ++lane) {
    CHECK(got[lane] == 105);
    CHECK(got[32 + lane] == 100 + lane / 8 * 8 + 1);
    CHECK(got[64 + lane] == 100 + (lane % 16 < 3 ? lane : lane - 3));
    CHECK(got[96 + lane] == 100 + (lane % 16 > 12 ? lane : lane + 3));
    CHECK(got[128 + lane] == 100 + (lane ^ 17));
    CHECK(got[160 + lane] == 496);
    CHECK(got[192 + lane] == (lane < 16 ? 2 : 30));
    CHECK(got[224 + lane] == static_cast<int>(threes));
    CHECK(got[256 + lane] == 10);
    CHECK(got[288 + lane] == 49631);
  }
}

__global__ void votes(int* out) {
  const int i = static_cast<int>(threadIdx.x);
  const int count = __syncthreads_count(i % 2);
  const int any = __syncthreads_or(i == 40);
  const int all = __syncthreads_and(i != 40);
  out[i] = 100 * count + 10 * any + all;
}

__global__ void atomics(int* counters, float* sum) {
  atomicAdd(&counters[0], 2);
  atomicMax(&counters[1], static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x));
  atomicMin(&counters[2], -static_cast<int>(threadIdx.x));
  atomicCAS(&counters[3], 0, 7);
  atomicAdd(sum, 0.5f);
}

void test_votes_and_atomics() {
  Values<int> out(64);
  SLICELLM_LAUNCH(votes, 1, 64, 0, nullptr, out.device());
  for (int value : out.fetch()) CHECK(value == 3210);
  Values<int> counters(4);
  Values<float> sum(1);
  cudaMemset(counters.device(), 0, 4 * sizeof(int));
  cudaMemset(sum.device(), 0, sizeof(float));
  SLICELLM_LAUNCH(atomics, 5, 33, 0, nullptr, counters.device(), sum.device());
  CHECK(cudaGetLastError() == cudaSuccess);
  const auto& got = counters.fetch();
  CHECK(got[0] == 330 && got[1] == 164 && got[2] == -32 && got[3] == 7);
  CHECK(sum.fetch()[0] == 82.5f);
}

struct Parameters {
  int values[3];
};
__global__ void by_value(Parameters p, int scale, int* out) { out[0] = p.values[2] * scale; }

void test_arguments_and_poison() {
  Values<int> out(2);
  Parameters p{{1, 2, 3}};
  SLICELLM_LAUNCH(by_value, 1, 1, 0, nullptr, p, 5, out.device());
  p.values[2] = 9;
  CHECK(out.fetch()[0] == 15);
  CHECK(out.fetch()[1] == -1);  // untouched device memory: all bits set
}

}  // namespace

int main() {
  test_indices();
  test_barriers();
  test_shuffles();
  test_votes_and_atomics();
  test_arguments_and_poison();
  return check_result();
}
