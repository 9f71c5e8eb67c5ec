// static: sequence-level scheduling, SLS in the comparison of SCLS (Cheng et al., arXiv
// 2406.13511). First come first served batches of a fixed size; prompts are padded to the longest,
// rows that have ended go on until the whole batch has, and the next batch starts only then. A
// batch starts with what waits, full or not. Tokens are reported as they come, not when the batch
// returns.
#include <algorithm>
#include <deque>

#include "policy/json.h"
#include "policy/policies.h"
#include "policy/static_batch.h"
#include "policy/step_builder.h"

namespace slicellm {
namespace {

class Static : public Policy {
 public:
  explicit Static(const Parameters& parameters)
      : batch_size_(parameters.integer("batch", 1, 1 << 20)) {}

  std::string name() const override { return "static"; }

  void on(const TaskEvent& event, const View& view) override {
    if (event.kind == TaskEventKind::arrive) {
      insert_by_arrival(waiting_, event.slot, view);
    } else if (!batch_.finish(event.slot)) {
      std::erase(waiting_, event.slot);
    }
  }

  StepPlan plan(const View& view) override {
    StepBuilder step(view, view.max_rows);
    chosen_.clear();
    if (batch_.ended()) {
      choose(step);
      next_ = chosen_.empty() ? StaticBatch() : StaticBatch(chosen_, view, limit_);
    }
    const StaticBatch& batch = batch_.ended() ? next_ : batch_;
    if (!batch.ended()) batch.plan(step);
    return step.take();
  }

  void commit(const StepPlan& plan, const StepOutcome& outcome, const View&) override {
    if (!chosen_.empty()) {
      batch_ = std::move(next_);
      waiting_.erase(std::remove_if(waiting_.begin(), waiting_.end(),
                                    [this](int32_t slot) {
                                      return std::find(chosen_.begin(), chosen_.end(), slot) !=
                                             chosen_.end();
                                    }),
                     waiting_.end());
      chosen_.clear();
    }
    if (plan.runs()) batch_.commit(plan, outcome);
  }

  bool takes_drafts() const override { return false; }
  std::string inspect() const override {
    return JsonObject()
        .add("running", batch_.live())
        .add("waiting", waiting_)
        .add("rows", batch_.ended() ? 0 : batch_.rows())
        .add("generated", batch_.generated())
        .text();
  }

 private:
  // The next batch: tasks in order of arrival while rows and KV for the worst case are left.
  void choose(StepBuilder& step) {
    const View& view = step.view();
    const int32_t rows = std::min(batch_size_, view.max_rows);
    int32_t longest = 0;
    limit_ = 0;
    for (int32_t slot : waiting_) {
      const TaskView& task = view.tasks[slot];
      if (std::string why = never_runs(task, view); !why.empty()) {
        step.reject(slot, std::move(why));
        continue;
      }
      const int32_t count = static_cast<int32_t>(chosen_.size()) + 1;
      longest = std::max(longest, task.prompt_len);
      const int32_t limit = std::max(limit_, task.max_tokens);
      if (count > rows) break;
      if (count > 1 && StaticBatch::blocks_needed(count, longest, limit, view) > view.free_blocks) {
        break;
      }
      limit_ = limit;
      chosen_.push_back(slot);
    }
  }

  const int32_t batch_size_;
  std::deque<int32_t> waiting_;  // by arrival then id
  StaticBatch batch_;
  // The proposal: tasks of the next batch, its most tokens a row, and the batch before its first
  // step.
  std::vector<int32_t> chosen_;
  int32_t limit_ = 0;
  StaticBatch next_;
};

}  // namespace

PolicyInfo static_info() {
  return {"static",
          "Cheng et al., SCLS, arXiv 2406.13511, baseline SLS",
          "First come first served batches of fixed size that run to their longest task's end.",
          {{"batch", "16", "tasks of a batch"}}};
}

std::unique_ptr<Policy> make_static(const Parameters& parameters) {
  return std::make_unique<Static>(parameters);
}

}  // namespace slicellm
