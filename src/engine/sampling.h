#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "slicellm/executor.h"
#include "slicellm/task.h"

namespace slicellm {

// Turns logits into tokens. In this order: the repetition penalty (Keskar et al. 2019, CTRL:
// positive logits divided, negative multiplied, once per distinct token of prompt and output),
// temperature, top-k, top-p over what top-k kept (the token that crosses stays), min-p relative to
// the best token; then one draw. Greedy (temperature 0) takes the best token. Equal logits rank by
// token id. A draw depends on the seed and the output position alone, so that neither scheduling
// nor recomputation changes it. Not thread-safe: holds scratch.
class Sampler {
 public:
  // logits[vocab]; `seen` = distinct ids of prompt and output (ids beyond the vocabulary are
  // ignored); `position` = output tokens so far. Fills token, logprobs or `invalid` of `result`.
  void sample(const Sampling& sampling, std::span<const float> logits,
              std::span<const int32_t> seen, uint64_t position, RowResult& result);

 private:
  void fill_logprobs(std::span<const float> logits, float best, int32_t top, RowResult& result);
  int32_t draw(const Sampling& sampling, std::span<const float> logits, float best,
               uint64_t position);

  std::vector<float> penalized_;
  std::vector<int32_t> order_;   // candidate ids
  std::vector<double> weights_;  // exp((logit - best) / temperature), by id
};

// A uniform number in [0, 1) that is a function of its arguments only.
double uniform_at(uint64_t seed, uint64_t position);

}  // namespace slicellm
