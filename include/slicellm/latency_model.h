#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace slicellm {

// What a step's duration depends on.
struct StepFeatures {
  int32_t tokens = 0;          // tokens through the linear layers (chunks + decode rows)
  int32_t rows = 0;            // rows that need logits
  double context = 0;          // sum over decode rows of their KV length
  double chunk_work = 0;       // sum over prefill chunks of n * (start + n/2): attention pairs
  double swap_bytes = 0;       // KV moved between device and host
  int32_t prefill_tokens = 0;  // those of `tokens` that belong to prefill chunks
};

struct Prediction {
  double median = 0;    // seconds
  double quantile = 0;  // seconds; the 95th percentile of what was seen
};

// Predicts a step's duration. Used by one thread at a time. `predict` costs well under 100 ns,
// `observe` under 2 us on average.
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

// A measured step.
struct LatencySample {
  StepFeatures step;
  double seconds = 0;
};

// Non-negative least squares over a monotone piecewise-linear function of the token count (real
// curves have steps) plus linear terms for the other features, weighted for relative error. Each
// observed step then corrects it: decayed normal equations that stay anchored to `samples`, so
// that what is not seen keeps its calibration, and a level, not stored, follows the last steps. The
// quantile is the 95th percentile of observed / predicted of late. `provenance`: text for people.
// Throws Error(invalid_argument) for no samples, or for one that is not finite and above 0.
std::unique_ptr<LatencyModel> fit_latency_model(std::span<const LatencySample> samples,
                                                std::string_view provenance);

// A published table of decode steps: decode_seconds[b - 1] = l(b), taken as it is even where it is
// not monotone. Beyond the table l grows by the table's mean slope (never falls). A step with
// prefill tokens costs prefill + prefill_per_token * n more; context and swaps cost nothing.
// Observed steps move the quantile only: a published table stays as published.
std::unique_ptr<LatencyModel> make_table_latency_model(std::span<const double> decode_seconds,
                                                       double prefill, double prefill_per_token);

// Reads what `to_json` wrote. Throws Error(format).
std::unique_ptr<LatencyModel> latency_model_from_json(std::string_view text);

class Model;

// Measures decode batches, contexts and prefill chunks of `model` for about `seconds` (more when
// its slowest smallest step needs it) and fits. progress(done, total) in milliseconds, from this
// thread.
std::unique_ptr<LatencyModel> calibrate(std::shared_ptr<Model> model, double seconds,
                                        const std::function<void(uint64_t, uint64_t)>& progress);

}  // namespace slicellm
