// orca: iteration-level scheduling, first come first served (Yu et al., OSDI'22, sections 3 and 4).
// After every step finished tasks leave and waiting ones join in arrival order, nobody overtaking,
// while rows are left and KV for the whole prompt and max_tokens can be reserved. No preemption.
#include <algorithm>
#include <deque>

#include "policy/json.h"
#include "policy/policies.h"
#include "policy/step_builder.h"

namespace slicellm {
namespace {

class Orca : public Policy {
 public:
  Orca(std::string name, int32_t max_batch) : name_(std::move(name)), max_batch_(max_batch) {}

  std::string name() const override { return name_; }

  void on(const TaskEvent& event, const View& view) override {
    if (event.kind == TaskEventKind::arrive) {
      insert_by_arrival(waiting_, event.slot, view);
      return;
    }
    if (std::erase(running_, event.slot) == 0) std::erase(waiting_, event.slot);
  }

  StepPlan plan(const View& view) override {
    StepBuilder step(view, max_batch_);
    int64_t promised = 0;  // blocks that running tasks may still ask for
    for (int32_t slot : running_) {
      const TaskView& task = view.tasks[slot];
      promised += most_growth(task, view);
      if (task.ready_to_decode()) step.decode(slot);
    }
    for (int32_t slot : running_) {  // prompts longer than a step
      if (!view.tasks[slot].ready_to_decode()) step.prefill(slot, step.whole_prefill(slot));
    }
    int32_t joined = 0;
    for (int32_t slot : waiting_) {
      const TaskView& task = view.tasks[slot];
      if (std::string why = never_runs(task, view); !why.empty()) {
        step.reject(slot, std::move(why));
        continue;
      }
      const int64_t need = most_growth(task, view);
      if (static_cast<int32_t>(running_.size()) + joined >= max_batch_) break;
      if (promised + need > view.free_blocks) break;
      if (!step.prefill(slot, step.whole_prefill(slot))) break;
      promised += need;
      ++joined;
    }
    return step.take();
  }

  void commit(const StepPlan& plan, const StepOutcome&, const View&) override {
    for (const PrefillChunk& chunk : plan.prefill) {
      const auto it = std::find(waiting_.begin(), waiting_.end(), chunk.slot);
      if (it == waiting_.end()) continue;
      waiting_.erase(it);
      running_.push_back(chunk.slot);
    }
  }

  std::string inspect() const override {
    return JsonObject().add("running", running_).add("waiting", waiting_).text();
  }

 private:
  const std::string name_;
  const int32_t max_batch_;
  std::vector<int32_t> running_;  // by arrival
  std::deque<int32_t> waiting_;   // by arrival then id
};

}  // namespace

PolicyInfo orca_info() {
  return {"orca",
          "Yu et al., Orca, OSDI'22, sections 3-4",
          "First come first served, joining and leaving at every step, no preemption.",
          {{"max_batch", "16", "tasks that may run at once"}}};
}

std::unique_ptr<Policy> make_iteration_level(std::string name, int32_t max_batch) {
  return std::make_unique<Orca>(std::move(name), max_batch);
}

std::unique_ptr<Policy> make_orca(const Parameters& parameters) {
  return make_iteration_level("orca", parameters.integer("max_batch", 1, 1 << 20));
}

}  // namespace slicellm
