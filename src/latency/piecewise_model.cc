#include "latency/piecewise_model.h"

#include <algorithm>
#include <cmath>

#include "slicellm/error.h"

namespace slicellm {
namespace {

constexpr size_t kRows = 15, kContext = 16, kChunkWork = 17, kSwapBytes = 18;
constexpr double kAnchorWeight = 8;   // what all samples together weigh, in observed steps
constexpr double kSmoothness = 3e-3;  // keeps slopes of unmeasured segments near their neighbours
constexpr int kSolveEvery = 64;       // observed steps between two solves
constexpr double kDecay = 0.88;       // of earlier observations at each solve: the last ~500 count
constexpr double kLevelWeight = 0.125;  // of the newest step in the level
constexpr double kLevelPull = 0.1;  // most that a step counts as off the level: strays pull less

// 0 where one of them tells nothing.
double log_ratio(double a, double b) { return a > 0 && b > 0 ? std::log(a / b) : 0; }

// Adds weight * x * x' and weight * x * y.
void accumulate(NnlsMatrix& a, NnlsVector& b, const NnlsVector& x, double y, double weight) {
  for (size_t i = 0; i < kNnlsSize; ++i) {
    if (x[i] == 0) continue;
    const double scaled = weight * x[i];
    for (size_t j = 0; j <= i; ++j) a[i][j] += scaled * x[j];
    b[i] += scaled * y;
  }
}

}  // namespace

PiecewiseModel::PiecewiseModel(std::vector<LatencySample> samples, std::string provenance)
    : samples_(std::move(samples)), provenance_(std::move(provenance)) {
  build_anchor();
  solve();
  std::vector<double> ratios;
  for (const LatencySample& s : samples_) {
    const double predicted = predict(s.step).median;
    if (predicted > 0) ratios.push_back(s.seconds / predicted);
  }
  std::sort(ratios.begin(), ratios.end());
  if (!ratios.empty()) set_quantile(ratios[(ratios.size() * 95 + 99) / 100 - 1]);
}

PiecewiseModel::PiecewiseModel(std::vector<LatencySample> samples, std::string provenance,
                               const NnlsVector& coefficients, double quantile)
    : samples_(std::move(samples)), provenance_(std::move(provenance)), residuals_(quantile) {
  build_anchor();
  set_coefficients(coefficients);
}

NnlsVector PiecewiseModel::basis(const StepFeatures& step) {
  NnlsVector x{};
  x[0] = step.tokens > 0 ? 1 : 0;
  for (size_t k = 0; k < kKnots.size() && step.tokens > kKnots[k]; ++k) {
    const int32_t end = k + 1 < kKnots.size() ? kKnots[k + 1] : step.tokens;
    x[k + 1] = std::min(step.tokens, end) - kKnots[k];
  }
  x[kRows] = step.rows;
  x[kContext] = step.context;
  x[kChunkWork] = step.chunk_work;
  x[kSwapBytes] = step.swap_bytes;
  return x;
}

void PiecewiseModel::build_anchor() {
  const double weight = kAnchorWeight / static_cast<double>(samples_.size());
  double slope = 0;  // seconds per token of the largest step: the size that smoothing compares with
  int32_t most_tokens = 0;
  for (const LatencySample& s : samples_) {
    accumulate(anchor_, anchor_b_, basis(s.step), s.seconds, weight / (s.seconds * s.seconds));
    if (s.step.tokens > most_tokens) {
      most_tokens = s.step.tokens;
      slope = s.seconds / most_tokens;
    }
  }
  if (slope == 0) return;
  for (size_t k = 2; k < kKnots.size() + 1; ++k) {
    NnlsVector x{};
    x[k - 1] = -kSmoothness / slope;
    x[k] = kSmoothness / slope;
    accumulate(anchor_, anchor_b_, x, 0, weight);
  }
}

void PiecewiseModel::set_coefficients(const NnlsVector& coefficients) {
  coefficients_ = coefficients;
  at_knot_[0] = coefficients_[0];
  for (size_t k = 1; k < kKnots.size(); ++k) {
    at_knot_[k] = at_knot_[k - 1] + coefficients_[k] * (kKnots[k] - kKnots[k - 1]);
  }
}

void PiecewiseModel::solve() {
  NnlsMatrix a = anchor_;
  NnlsVector b = anchor_b_;
  for (size_t i = 0; i < kNnlsSize; ++i) {
    for (size_t j = 0; j <= i; ++j) a[i][j] += seen_[i][j];
    b[i] += seen_b_[i];
  }
  set_coefficients(solve_nnls(a, b));
}

double PiecewiseModel::fitted(const StepFeatures& step) const {
  double seconds = coefficients_[kRows] * step.rows + coefficients_[kContext] * step.context +
                   coefficients_[kChunkWork] * step.chunk_work +
                   coefficients_[kSwapBytes] * step.swap_bytes;
  if (step.tokens > 0) {
    const auto above = std::upper_bound(kKnots.begin(), kKnots.end(), step.tokens);
    const size_t k = static_cast<size_t>(above - kKnots.begin()) - 1;
    seconds += at_knot_[k] + coefficients_[k + 1] * (step.tokens - kKnots[k]);
  }
  return seconds;
}

Prediction PiecewiseModel::predict(const StepFeatures& step) const {
  const double seconds = level_ * fitted(step);
  return {.median = seconds, .quantile = seconds * residuals_.ratio()};
}

void PiecewiseModel::set_level(double log_level) {
  log_level_ = log_level;
  level_ = std::exp(log_level);
}

// Relative to the larger of the two times, so that a stray slow step has a bounded pull.
void PiecewiseModel::see(const LatencySample& observed, double predicted) {
  const double size = std::max(observed.seconds, predicted);
  accumulate(seen_, seen_b_, basis(observed.step), observed.seconds, 1 / (size * size));
}

// What was seen before the machine changed no longer holds. Where decode steps and prompts are off
// alike, so is everything else; where only the one kind has been seen, the other stays.
void PiecewiseModel::start_anew() {
  size_t prompts = 0;
  double log_level = 0;
  for (const LatencySample& s : shift_.steps()) {
    prompts += s.step.prefill_tokens > 0;
    log_level += std::log(s.seconds / fitted(s.step));
  }
  if (prompts > 0 && prompts < LevelShift::kSteps) {
    const double level = std::exp(log_level / LevelShift::kSteps);
    for (double& b : anchor_b_) b *= level;
  }
  seen_ = {};
  seen_b_ = {};
  for (const LatencySample& s : shift_.steps()) see(s, s.seconds);
  observed_ = unsolved_ = 0;
  residuals_ = ResidualQuantile(residuals_.ratio());
  solve();
  log_level = 0;  // what the anchor has kept from the fit
  for (const LatencySample& s : shift_.steps()) log_level += log_ratio(s.seconds, fitted(s.step));
  set_level(log_level / LevelShift::kSteps);
}

void PiecewiseModel::observe(const StepFeatures& step, double seconds) {
  if (!(seconds > 0) || !std::isfinite(seconds)) return;
  const double predicted = fitted(step);
  if (predicted > 0) {
    residuals_.add(seconds / (level_ * predicted));
    if (shift_.add({step, seconds}, predicted)) return start_anew();
    const double off = std::log(seconds / predicted) - log_level_;
    set_level(log_level_ + kLevelWeight * std::clamp(off, -kLevelPull, kLevelPull));
  }
  see({step, seconds}, predicted);
  ++observed_;
  ++unsolved_;
  // The first corrections come early: the machine may not be as it was when it was calibrated.
  if (unsolved_ < kSolveEvery && observed_ != 8 && observed_ != 24) return;
  solve();
  // What the coefficients have taken over is no longer the level's.
  set_level(log_level_ + log_ratio(predicted, fitted(step)));
  if (unsolved_ < kSolveEvery) return;
  unsolved_ = 0;
  for (size_t i = 0; i < kNnlsSize; ++i) {
    for (size_t j = 0; j <= i; ++j) seen_[i][j] *= kDecay;
    seen_b_[i] *= kDecay;
  }
}

void check_latency_samples(std::span<const LatencySample> samples) {
  if (samples.empty()) {
    throw Error(ErrorKind::invalid_argument, "latency samples", "none", "at least one");
  }
  for (const LatencySample& s : samples) {
    // Features count whole and half things; a smaller one would need a coefficient out of range.
    auto in_range = [](double value) { return value == 0 || (value >= 0.5 && value <= 1e15); };
    if (!(s.seconds >= 1e-9 && s.seconds <= 1e9) || s.step.tokens < 0 || s.step.rows < 0 ||
        !in_range(s.step.context) || !in_range(s.step.chunk_work) || !in_range(s.step.swap_bytes)) {
      throw Error(ErrorKind::invalid_argument, "latency sample",
                  std::to_string(s.seconds) + " s for " + std::to_string(s.step.tokens) + " tokens",
                  "1e-9 to 1e9 seconds, features of 0 or from 0.5 to 1e15");
    }
  }
}

std::unique_ptr<LatencyModel> fit_latency_model(std::span<const LatencySample> samples,
                                                std::string_view provenance) {
  check_latency_samples(samples);
  return std::make_unique<PiecewiseModel>(
      std::vector<LatencySample>(samples.begin(), samples.end()), std::string(provenance));
}

}  // namespace slicellm
