#include "policy/pace_demand.h"

#include <algorithm>
#include <cmath>

namespace slicellm {

StepCurve::StepCurve(const LatencyModel& latency, int32_t max_rows, double mean_context) {
  for (int32_t b = 1; b <= max_rows; ++b) {
    step_.push_back(latency.decode_step(b, mean_context));
    const double per_token = step_.back() / b;
    const bool better = b == 1 || per_token < per_token_.back();
    per_token_.push_back(better ? per_token : per_token_.back());
    best_.push_back(better ? b : best_.back());
  }
}

double StepCurve::per_token(double rows) const {
  const double x = std::clamp(rows, 1.0, static_cast<double>(max_rows()));
  const size_t low = static_cast<size_t>(x) - 1;
  const size_t high = std::min(low + 1, per_token_.size() - 1);
  const double part = x - std::floor(x);
  return per_token_[low] + (per_token_[high] - per_token_[low]) * part;
}

DemandGrid::DemandGrid(double first) {
  for (double& moment : ahead) {
    moment = first;
    first *= 2;
  }
}

void DemandGrid::add(const Task& task) {
  for (int g = 0; g < kMoments; ++g) {
    tokens[g] += task.tokens[g];
    longest[g] = std::max(longest[g], task.tokens[g]);
    other[g] += task.other[g];
  }
  ++tasks;
}

bool DemandGrid::fits(const Task& task, const StepCurve& curve, const Task& reserve,
                      double share) const {
  for (int g = 0; g < kMoments; ++g) {
    if (task.tokens[g] <= 0 && task.other[g] <= 0) continue;
    const double sum = tokens[g] + task.tokens[g] + reserve.tokens[g];
    const double most = std::max({longest[g], task.tokens[g], 1.0});
    const double decode = sum > 0 ? sum * curve.per_token(sum / most) : 0;
    if (decode + other[g] + task.other[g] + reserve.other[g] > share * ahead[g]) return false;
  }
  return true;
}

}  // namespace slicellm
