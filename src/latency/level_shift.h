#pragma once

#include <array>
#include <cstddef>

#include "slicellm/latency_model.h"

namespace slicellm {

// Notices that steps have begun to take longer, or shorter, than predicted, as when the clock or
// the power state of the machine has changed. Noise does not look so: with a spread of 20 %, 16
// steps in a row lie above 1.1 times what was predicted once in 10^8.
class LevelShift {
 public:
  static constexpr size_t kSteps = 16;
  static constexpr double kLeast = 1.1;

  // A step and the seconds it was predicted to take, above 0. True when the last kSteps all took
  // more than kLeast times that, or all less than 1 / kLeast; then the next begin anew.
  bool add(const LatencySample& observed, double predicted) {
    const double ratio = observed.seconds / predicted;
    const int side = ratio > kLeast ? 1 : ratio * kLeast < 1 ? -1 : 0;
    if (side != side_ || count_ == kSteps) count_ = 0;
    side_ = side;
    if (side == 0) return false;
    steps_[count_] = observed;
    return ++count_ == kSteps;
  }
  const std::array<LatencySample, kSteps>& steps() const { return steps_; }  // once `add` was true

 private:
  std::array<LatencySample, kSteps> steps_{};
  size_t count_ = 0;
  int side_ = 0;  // on which the last steps lie
};

}  // namespace slicellm
