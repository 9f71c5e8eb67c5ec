#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "slicellm/latency_model.h"

namespace slicellm {

// l(b) for b = 1 .. max rows at one mean context, and the best that batches of at most x rows
// reach.
class StepCurve {
 public:
  StepCurve() = default;
  StepCurve(const LatencyModel& latency, int32_t max_rows, double mean_context);

  int32_t max_rows() const { return static_cast<int32_t>(step_.size()); }
  double step(int32_t rows) const { return step_[rows - 1]; }  // seconds
  // The batch of at most `rows` rows (>= 1) with the least time a token.
  int32_t best_rows(int32_t rows) const { return best_[std::min(rows, max_rows()) - 1]; }
  // Least seconds a token when a step holds `rows` (>= 1) rows on the average.
  double per_token(double rows) const;

 private:
  std::vector<double> step_, per_token_;  // per_token_[b-1]: min over b' <= b of l(b') / b'
  std::vector<int32_t> best_;
};

// Work that must be done by each of a few moments ahead: the processor demand of real-time
// scheduling (Baruah, Rosier and Howell, 1990) with batches. A step of b rows takes l(b) and holds
// at most one token of a task, so T tokens of which one task needs N take at least N steps: their
// cost is that of steps of T / N rows, or of the best batch if that is smaller.
struct DemandGrid {
  static constexpr int kMoments = 14;  // each twice as far as the one before
  using Values = std::array<double, kMoments>;

  Values ahead{};    // seconds from now, ascending
  Values tokens{};   // decode tokens due by then
  Values longest{};  // most of them that one task needs
  Values other{};    // seconds of prefill due by then
  int32_t tasks = 0;

  // `first`: the first moment, seconds; each next one is twice as far.
  explicit DemandGrid(double first);

  struct Task {
    Values tokens{}, other{};
  };
  void add(const Task& task);
  // True if the work of every moment at which `task` has some, with it and `reserve` added, fits
  // in `share` of the time until then. `reserve` stands for many tasks: none of it is one task's.
  bool fits(const Task& task, const StepCurve& curve, const Task& reserve, double share) const;
};

}  // namespace slicellm
