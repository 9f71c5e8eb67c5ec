#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "slicellm/batch.h"

namespace slicellm {

// Per-task targets, in seconds from the task's arrival; an absent one is not judged.
struct Slo {
  std::optional<double> ttft;      // first token
  std::optional<double> tpot;      // (last - first token) / (tokens - 1)
  std::optional<double> deadline;  // last token
};

struct Sampling {
  double temperature = 0;  // 0 = greedy
  int32_t top_k = 0;       // 0 = all
  double top_p = 1;        // keeps the token that crosses
  double min_p = 0;        // drops tokens below min_p * the best probability
  double repetition_penalty = 1;
  uint64_t seed = 0;
  int32_t logprobs = -1;  // -1 = none, 0 = the chosen token's, k = also the k best
};

enum class FinishReason { none, stop, length, cancelled, deadline, rejected, error };
const char* to_string(FinishReason reason);

// A request as a caller hands it over. `validate` checks everything that does not depend on the
// engine and throws Error(invalid_argument) with outside names (ttft_ms, top_p, ...).
struct TaskSpec {
  std::vector<int32_t> prompt;  // token ids
  Sampling sampling;
  Slo slo;
  double utility = 1;
  int32_t max_tokens = 256;
  std::string class_name = "default";
  std::vector<int32_t> stop_ids;
  std::vector<std::string> stop;  // stop strings, never part of the output
  bool ignore_eos = false;
  bool stop_at_deadline = false;  // end with FinishReason::deadline when it passes
  std::optional<double> arrival;  // scheduled arrival on the engine's clock; absent = now

  // Workload runs: the output length the task really has. Goes to the executor only, so that no
  // policy, reservation or learner can see it. 0 = the model decides.
  int32_t true_output_tokens = 0;

  void validate() const;
};

}  // namespace slicellm
