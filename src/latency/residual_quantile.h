#pragma once

#include <algorithm>
#include <array>
#include <cstddef>

namespace slicellm {

// The 95th percentile of observed / predicted over the last 256 steps; a given ratio until 64 were
// seen. Recomputed every 64 steps.
class ResidualQuantile {
 public:
  // Steps predicted to take next to no time must not make it infinite.
  static constexpr double kMost = 1e6;

  explicit ResidualQuantile(double initial = 1.1) : ratio_(std::clamp(initial, 1.0, kMost)) {}

  double ratio() const { return ratio_; }  // 1 to kMost

  void add(double observed_over_predicted) {
    ring_[count_ % kSize] = observed_over_predicted;
    ++count_;
    if (count_ % 64 != 0) return;
    const size_t n = std::min(count_, kSize);
    std::array<double, kSize> sorted = ring_;
    const size_t rank = (n * 95 + 99) / 100 - 1;
    std::nth_element(sorted.begin(), sorted.begin() + rank, sorted.begin() + n);
    ratio_ = std::clamp(sorted[rank], 1.0, kMost);
  }

 private:
  static constexpr size_t kSize = 256;
  std::array<double, kSize> ring_{};
  size_t count_ = 0;
  double ratio_;
};

}  // namespace slicellm
