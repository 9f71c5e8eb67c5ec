#include "latency/table_model.h"

#include <algorithm>
#include <cmath>

#include "slicellm/error.h"

namespace slicellm {
namespace {

void check_seconds(double value, const char* field, bool may_be_zero) {
  if (value <= 1e9 && (value > 0 || (may_be_zero && value == 0))) return;
  throw Error(ErrorKind::invalid_argument, field, std::to_string(value * 1000) + " ms",
              may_be_zero ? "0 or more, up to 1e12" : "above 0, up to 1e12");
}

}  // namespace

TableModel::TableModel(std::vector<double> decode_seconds, double prefill, double prefill_per_token,
                       double quantile)
    : decode_seconds_(std::move(decode_seconds)),
      prefill_(prefill),
      prefill_per_token_(prefill_per_token),
      residuals_(quantile) {
  if (decode_seconds_.empty()) {
    throw Error(ErrorKind::invalid_argument, "decode table", "no entry", "at least one");
  }
  for (double seconds : decode_seconds_) check_seconds(seconds, "decode table", false);
  check_seconds(prefill_, "prefill_ms", true);
  check_seconds(prefill_per_token_, "prefill_ms_per_token", true);
  const size_t n = decode_seconds_.size();
  if (n > 1) {
    slope_ =
        std::max(0.0, (decode_seconds_[n - 1] - decode_seconds_[0]) / static_cast<double>(n - 1));
  }
}

Prediction TableModel::predict(const StepFeatures& step) const {
  const int32_t n = static_cast<int32_t>(decode_seconds_.size());
  const int32_t decode_rows = step.tokens - step.prefill_tokens;
  double seconds = 0;
  if (decode_rows > 0) {
    seconds = decode_seconds_[std::min(decode_rows, n) - 1] + slope_ * std::max(0, decode_rows - n);
  }
  if (step.prefill_tokens > 0) seconds += prefill_ + prefill_per_token_ * step.prefill_tokens;
  return {.median = seconds, .quantile = seconds * residuals_.ratio()};
}

void TableModel::observe(const StepFeatures& step, double seconds) {
  const double predicted = predict(step).median;
  if (predicted > 0 && seconds > 0 && std::isfinite(seconds)) residuals_.add(seconds / predicted);
}

std::unique_ptr<LatencyModel> make_table_latency_model(std::span<const double> decode_seconds,
                                                       double prefill, double prefill_per_token) {
  return std::make_unique<TableModel>(
      std::vector<double>(decode_seconds.begin(), decode_seconds.end()), prefill, prefill_per_token,
      1.0);
}

}  // namespace slicellm
