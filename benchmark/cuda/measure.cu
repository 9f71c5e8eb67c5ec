#include "benchmark/cuda/measure.h"

#include <algorithm>
#include <vector>

#include "cuda/kernel.h"
#include "cuda/ptx.h"

namespace slicellm::cuda {
namespace {

constexpr int kChains = 8;  // of matrix steps that do not wait for each other, a warp
constexpr int kChainSteps = 500;
constexpr int kWarps = 8;
constexpr double kStepOperations = 2.0 * 16 * 8 * 16;
constexpr double kHeadStart = 2e-3;  // seconds that the device is busy while launches are queued

// Nothing but matrix steps, from registers. Keeps one of its results so that it must compute them.
__global__ void multiply_only(float* out) {
  const uint32_t one = 0x3c003c00;  // 1, twice
  const uint32_t a[4] = {one, one, one, one}, b[2] = {one, one};
  float sums[kChains][4] = {};
  for (int i = 0; i < kChainSteps; ++i) {
#pragma unroll
    for (int j = 0; j < kChains; ++j) mma_m16n8k16<__half>(sums[j], a, b);
  }
  float total = 0;
#pragma unroll
  for (int j = 0; j < kChains; ++j) total += sums[j][0];
  if (threadIdx.x == 0) out[blockIdx.x] = total;
}

}  // namespace

Meter::Meter() : device_(device_info(0)) {
  const size_t bytes = std::max<size_t>(device_.l2_bytes * 8, 32 << 20);
  from_ = DeviceBuffer(memory_, bytes, "benchmark buffer");
  to_ = DeviceBuffer(memory_, bytes, "benchmark buffer");
  SLICELLM_CUDA_CHECK(cudaMemsetAsync(from_.get(), 1, bytes, stream_));
  copy_rate_ = 1e12;  // until it is known, for the length of the head start
  copy_rate_ = 2.0 * static_cast<double>(bytes) / time(10, 5, [&](int) { copy(); });
  const int blocks = device_.multiprocessors;
  const double operations = kStepOperations * kChains * kChainSteps * kWarps * blocks;
  matrix_rate_ = operations / time(10, 3, [&](int) {
                   SLICELLM_LAUNCH(multiply_only, dim3(blocks), dim3(kWarps * 32), 0, stream_,
                                   to_.get<float>());
                   SLICELLM_CUDA_CHECK(cudaGetLastError());
                 });
}

void Meter::copy() const {
  stream_.copy(to_.get(), from_.get(), from_.bytes(), cudaMemcpyDeviceToDevice);
}

double Meter::time(int count, int repeats, const std::function<void(int)>& launch) const {
  const double copy_seconds = 2.0 * static_cast<double>(from_.bytes()) / copy_rate_;
  const int copies = static_cast<int>(kHeadStart / copy_seconds) + 1;
  Event start, end;
  std::vector<double> seconds;
  for (int repeat = 0; repeat <= repeats; ++repeat) {
    for (int i = 0; i < copies; ++i) copy();
    start.record(stream_);
    for (int i = 0; i < count; ++i) launch(i);
    end.record(stream_);
    end.synchronize();
    if (repeat > 0) seconds.push_back(end.seconds_since(start) / count);  // the first warms up
  }
  std::nth_element(seconds.begin(), seconds.begin() + repeats / 2, seconds.end());
  return seconds[static_cast<size_t>(repeats / 2)];
}

int Meter::launches_for(double seconds, double budget, int least) {
  return std::clamp(static_cast<int>(budget / seconds), least, std::max(least, 400));
}

double Meter::roofline(double bytes, double operations) const {
  return std::max(bytes / copy_rate_, operations / matrix_rate_);
}

}  // namespace slicellm::cuda
