#pragma once

#include <cstdint>
#include <vector>

#include "policy/step_builder.h"
#include "slicellm/policy.h"

namespace slicellm {

// A batch whose rows start and stop together, as servers without iteration-level scheduling run it.
// All prompts (prompt + output, for a task that comes back) are computed first, each filled up with
// pads to the longest; then every step decodes one token a row. The row of a task that has ended
// goes on as padding. The batch ends early when all of its tasks have.
class StaticBatch {
 public:
  StaticBatch() = default;  // ended
  // `slots`: at least one. Each row gets at most `limit` tokens. Tasks must hold no KV.
  StaticBatch(const std::vector<int32_t>& slots, const View& view, int32_t limit);

  // Device blocks that `rows` rows of at most `length` tokens need to get `limit` tokens each.
  static int64_t blocks_needed(int64_t rows, int64_t length, int64_t limit, const View& view);

  bool ended() const { return live_ == 0 || generated_ >= limit_; }
  bool decoding() const { return generated_ > 0; }
  int32_t rows() const { return static_cast<int32_t>(members_.size()); }
  int32_t length() const { return length_; }        // tokens of the longest input
  int32_t generated() const { return generated_; }  // tokens a row so far
  std::vector<int32_t> live() const;                // slots of tasks that have not ended

  // Adds the batch's next step. The batch must not have ended.
  void plan(StepBuilder& step) const;
  void commit(const StepPlan& plan, const StepOutcome& outcome);
  // The task in `slot` ended; false if it is not of this batch.
  bool finish(int32_t slot);

 private:
  struct Member {
    int32_t slot = 0;
    int32_t length = 0;    // tokens of its input
    bool ended = false;    // its slot may belong to another task by now
    bool started = false;  // has its first token
  };
  bool prefilled() const;

  std::vector<Member> members_;
  std::vector<int32_t>
      pads_;  // pad tokens left of each prompt that needs some; the last comes first
  int32_t length_ = 0, limit_ = 0, live_ = 0, generated_ = 0;
  int32_t longest_ = 0;  // tokens that some row can come to have: what the model surely allows
};

}  // namespace slicellm
