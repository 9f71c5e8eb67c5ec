#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <limits>

namespace slicellm {

// Quantiles of a stream of positive numbers in fixed memory: counts in bins that grow by 1 % from
// 1e-9 on, so that a quantile is off by at most 0.5 % (as in HdrHistogram and DDSketch). Values
// outside 1e-9 .. 1e9 count in the outermost bins; mean, minimum and maximum are exact.
class QuantileSketch {
 public:
  void add(double value) {
    const double bin = std::log(value / kLow) * kBinsPerE;
    ++bins_[!(bin > 0) ? 0 : bin >= kBins ? kBins - 1 : static_cast<size_t>(bin)];
    ++count_;
    sum_ += value;
    min_ = std::fmin(min_, value);
    max_ = std::fmax(max_, value);
  }

  int64_t count() const { return count_; }
  double mean() const { return count_ ? sum_ / static_cast<double>(count_) : kNan; }
  double max() const { return count_ ? max_ : kNan; }

  // The value below which a share q (0 to 1) of the numbers lies; NaN if there are none.
  double quantile(double q) const {
    if (count_ == 0) return kNan;
    const double rank = q * static_cast<double>(count_ - 1);
    int64_t below = 0;
    for (size_t i = 0; i < kBins; ++i) {
      below += bins_[i];
      if (static_cast<double>(below) <= rank) continue;
      const double middle = kLow * std::exp((static_cast<double>(i) + 0.5) / kBinsPerE);
      return std::fmin(std::fmax(middle, min_), max_);
    }
    return max_;
  }

 private:
  static constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  static constexpr double kLow = 1e-9;
  static constexpr double kBinsPerE = 100.49917080713044;  // 1 / ln(1.01)
  static constexpr size_t kBins = 4166;                    // up to 1e9

  std::array<int64_t, kBins> bins_{};
  int64_t count_ = 0;
  double sum_ = 0;
  double min_ = std::numeric_limits<double>::infinity();
  double max_ = -std::numeric_limits<double>::infinity();
};

}  // namespace slicellm
