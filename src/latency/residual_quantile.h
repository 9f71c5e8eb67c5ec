#pragma once

#include <algorithm>
#include <array>
#include <cstddef>

namespace slicellm {

// The 95th percentile of observed / predicted over the last 256 steps; a given ratio until 64 were
// seen. Recomputed every 64 steps.
class ResidualQuantile {
 public:
  explicit ResidualQuantile(double initial = 1.1) : ratio_(std::max(1.0, initial)) {}

  double ratio() const { return ratio_; }  // at least 1

  void add(double observed_over_predicted) {
    ring_[count_ % kSize] = observed_over_predicted;
    ++count_;
    if (count_ % 64 != 0) return;
    const size_t n = std::min(count_, kSize);
    std::array<double, kSize> sorted = ring_;
    const size_t rank = (n * 95 + 99) / 100 - 1;
    std::nth_element(sorted.begin(), sorted.begin() + rank, sorted.begin() + n);
    ratio_ = std::max(1.0, sorted[rank]);
  }

 private:
  static constexpr size_t kSize = 256;
  std::array<double, kSize> ring_{};
  size_t count_ = 0;
  double ratio_;
};

}  // namespace slicellm
