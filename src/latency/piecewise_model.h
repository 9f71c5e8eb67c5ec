#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "latency/level_shift.h"
#include "latency/nnls.h"
#include "latency/residual_quantile.h"
#include "slicellm/latency_model.h"

namespace slicellm {

// Throws Error(invalid_argument) for no samples or for values that no step can have.
void check_latency_samples(std::span<const LatencySample> samples);

// The fitted latency model: see fit_latency_model in latency_model.h. When the machine changes (a
// clock, a power state), so that 16 steps in a row take 1.1 times longer or shorter than fitted,
// what was seen before is forgotten. Between two fits a level follows how much longer or shorter
// the last steps took: clocks and memory that others use drift within a few steps. It is not stored
// with the model. Its coefficients are
//   0        the cost of computing at all (the first token),
//   1 .. 14  the slope per token between the knots 1, 2, 4, 8, 12, 16, 24, 32, 64, ... 2048, inf,
//   15 .. 18 per row of logits, per token of context, per unit of chunk work, per byte swapped.
class PiecewiseModel final : public LatencyModel {
 public:
  PiecewiseModel(std::vector<LatencySample> samples, std::string provenance);
  // With coefficients and quantile as `to_json` stored them.
  PiecewiseModel(std::vector<LatencySample> samples, std::string provenance,
                 const NnlsVector& coefficients, double quantile);

  Prediction predict(const StepFeatures& step) const override;
  void observe(const StepFeatures& step, double seconds) override;
  std::string to_json() const override;
  std::unique_ptr<LatencyModel> clone() const override {
    return std::make_unique<PiecewiseModel>(*this);
  }

  const NnlsVector& coefficients() const { return coefficients_; }
  // Replaces the quantile, e.g. by that of raw measurements whose medians were fitted.
  void set_quantile(double ratio) { residuals_ = ResidualQuantile(ratio); }

 private:
  double fitted(const StepFeatures& step) const;  // seconds, by the coefficients alone

  static constexpr std::array<int32_t, 14> kKnots = {1,  2,  4,   8,   12,  16,   24,
                                                     32, 64, 128, 256, 512, 1024, 2048};

  static NnlsVector basis(const StepFeatures& step);
  void build_anchor();
  void set_coefficients(const NnlsVector& coefficients);
  void solve();
  void see(const LatencySample& observed, double predicted);
  void start_anew();
  void set_level(double log_level);

  std::vector<LatencySample> samples_;
  std::string provenance_;
  NnlsVector coefficients_{};
  std::array<double, kKnots.size()> at_knot_{};  // the token curve's value at each knot
  NnlsMatrix anchor_{}, seen_{};                 // normal equations: samples, decayed observations
  NnlsVector anchor_b_{}, seen_b_{};
  double log_level_ = 0;  // of the last steps over what the coefficients say of them
  double level_ = 1;      // its exponential
  LevelShift shift_;
  int unsolved_ = 0;  // observations since the last solve
  int64_t observed_ = 0;
  ResidualQuantile residuals_;
};

}  // namespace slicellm
