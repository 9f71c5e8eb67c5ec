#include "policy/serving_times.h"

#include <algorithm>

namespace slicellm {

void ServingTimes::Fit::add(double rows, double length, double seconds) {
  if (!(seconds > 0)) return;
  const Coefficients x = {rows * length, rows, length, 1};
  const double weight = 1 / (seconds * seconds);
  for (size_t i = 0; i < x.size(); ++i) {
    for (size_t j = 0; j <= i; ++j) a[i][j] += weight * x[i] * x[j];
    b[i] += weight * x[i] * seconds;
  }
}

void ServingTimes::Fit::solve() {
  const NnlsVector solution = solve_nnls(a, b);
  std::copy_n(solution.begin(), coefficients.size(), coefficients.begin());
}

double ServingTimes::Fit::at(double rows, double length) const {
  return coefficients[0] * rows * length + coefficients[1] * rows + coefficients[2] * length +
         coefficients[3];
}

void ServingTimes::seed(const LatencyModel& latency, int32_t max_rows) {
  for (int32_t rows = 1; rows <= max_rows; rows *= 2) {
    for (int32_t length : {16, 64, 256, 1024}) {
      const int32_t tokens = rows * length;
      prefill_.add(rows, length,
                   latency
                       .predict({.tokens = tokens,
                                 .rows = rows,
                                 .chunk_work = 0.5 * tokens * length,
                                 .prefill_tokens = tokens})
                       .median);
      step_.add(rows, length, latency.decode_step(rows, length));
    }
  }
  seeded_ = true;
}

void ServingTimes::observe_prefill(int32_t rows, int32_t length, double seconds) {
  prefill_.add(rows, length, seconds);
}

void ServingTimes::observe_step(int32_t rows, int32_t length, double seconds) {
  step_.add(rows, length, seconds);
}

void ServingTimes::fit() {
  prefill_.solve();
  step_.solve();
}

double ServingTimes::batch(int32_t rows, int32_t length, int32_t tokens) const {
  const double mean = length + 0.5 * (tokens - 1);  // td is linear in l
  return prefill_.at(rows, length) + tokens * step_.at(rows, mean);
}

}  // namespace slicellm
