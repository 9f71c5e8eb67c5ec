#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace slicellm {

// What a step's duration depends on.
struct StepFeatures {
  int32_t tokens = 0;       // tokens through the linear layers (chunks + decode rows)
  int32_t rows = 0;         // rows that need logits
  double context = 0;       // sum over decode rows of their KV length
  double chunk_work = 0;    // sum over prefill chunks of n * (start + n/2): attention pairs
  double swap_bytes = 0;    // KV moved between device and host
};

struct Prediction {
  double median = 0;    // seconds
  double quantile = 0;  // seconds; the 95th percentile of what was seen
};

// Predicts a step's duration: non-negative least squares over a monotone piecewise-linear function
// of the token count (real curves have steps) plus linear terms for the other features. Starts from
// a calibration, corrects itself with every observed step. Used by the engine thread only.
class LatencyModel {
 public:
  virtual ~LatencyModel() = default;
  virtual Prediction predict(const StepFeatures& step) const = 0;
  virtual void observe(const StepFeatures& step, double seconds) = 0;
  virtual std::string to_json() const = 0;
  virtual std::unique_ptr<LatencyModel> clone() const = 0;

  // l(b): a decode step of b rows whose mean context is `mean_context` tokens.
  double decode_step(int32_t rows, double mean_context) const {
    return predict({.tokens = rows, .rows = rows, .context = rows * mean_context}).median;
  }
};

}  // namespace slicellm
