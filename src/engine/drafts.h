#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "slicellm/latency_model.h"

// Prompt-lookup decoding (Saxena, 2023; "ngram" speculation in vLLM): a text that says something
// again is likely to go on as it did before. What followed is guessed, as drafts; one step computes
// the logits after all of them (Leviathan et al., 2023, with copying as the draft model), and those
// that are not what is drawn there anyway are thrown away.
namespace slicellm {

// Puts into `drafts` up to `most` tokens that followed the last earlier place where the last three
// tokens stand, or else the last two; none if there is no such place. Goes on through its own
// drafts where it reaches the end.
void look_up(std::span<const int32_t> tokens, int32_t most, std::vector<int32_t>& drafts);

// How a task's drafts have fared lately.
class DraftHistory {
 public:
  // The believed probability that the next draft is right.
  double acceptance() const { return acceptance_; }
  // Of `drafts` that could have been tried, `tried` were and the first `right` of them were right.
  void note(int32_t tried, int32_t right);

 private:
  double acceptance_ = 0.5;
};

// Decides how many drafts each decode row of a step carries.
class DraftBudget {
 public:
  // `step` without drafts, within which `smallest_tpot` of its rows was set (infinity = none).
  DraftBudget(const LatencyModel& latency, const StepFeatures& step, double smallest_tpot);

  // As many of `most` as give the most expected tokens a second, the tokens of all other rows
  // counted too. They are added to the step: a draft costs what a decode row costs.
  int32_t take(int32_t context, double acceptance, int32_t most);
  const StepFeatures& step() const { return step_; }

 private:
  const LatencyModel& latency_;
  StepFeatures step_;
  double tokens_;   // expected of the step
  double seconds_;  // predicted
  double limit_;    // seconds that drafts may lengthen the step to
};

}  // namespace slicellm
