// edf: earliest next-token deadline first (Liu and Layland, JACM 1973, section 7, with the next
// token of a task as the job). The batch is the tasks whose next token is due first.
//
// Token k (from 0) of a task is due at arrival + TTFT + k * TPOT, and at its deadline where that is
// earlier. A TPOT without a TTFT counts as the TTFT too; after the first token of a task with a
// TTFT only, and for one without targets, nothing is due: such tasks come last, by arrival.
//
// Ours:
//  * Prompts run whole beside decodes. The first one that finds no room in the step or in KV closes
//    the door for all without KV on the device behind it, or it could wait for ever.
//  * KV is taken from the tasks whose token is due last, by a swap or, with the host full, a drop.
//    A task that lost its KV comes back only when there is room, or two tasks that do not fit
//    beside each other would take it from each other for every token.
#include <algorithm>
#include <set>

#include "policy/json.h"
#include "policy/never_run.h"
#include "policy/policies.h"
#include "policy/step_builder.h"

namespace slicellm {
namespace {

class Edf : public Policy {
 public:
  explicit Edf(const Parameters& p) : max_batch_(p.integer("max_batch", 1, 1 << 20)) {}

  std::string name() const override { return "edf"; }
  void on(const TaskEvent& event, const View& view) override;
  StepPlan plan(const View& view) override;
  void commit(const StepPlan& plan, const StepOutcome& outcome, const View& view) override;
  std::string inspect() const override;

 private:
  using Order = std::set<Ranked>;

  const int32_t max_batch_;
  std::vector<Ranked> entries_;  // by slot; rank: when the next token is due
  Order order_;                  // all that can run
  Order holders_;                // those of them that hold KV, on the device or the host
  NeverRun never_run_;
};

// When the next token of `task` is due, on the engine's clock.
double next_due(const TaskView& task) {
  double due = kBackRank;
  if (task.slo.tpot) {
    due = task.arrival + task.slo.ttft.value_or(*task.slo.tpot) + task.produced * *task.slo.tpot;
  } else if (task.slo.ttft && task.produced == 0) {
    due = task.arrival + *task.slo.ttft;
  }
  if (task.slo.deadline) due = std::min(due, task.arrival + *task.slo.deadline);
  return due;
}

void Edf::on(const TaskEvent& event, const View& view) {
  const int32_t slot = event.slot;
  const TaskView& task = view.tasks[slot];
  if (event.kind == TaskEventKind::finish) {
    if (never_run_.finish(slot)) return;
    order_.erase(entries_[slot]);
    holders_.erase(entries_[slot]);
    return;
  }
  if (never_run_.arrive(slot, view)) return;
  if (entries_.size() <= static_cast<size_t>(slot)) entries_.resize(slot + 1);
  entries_[slot] = {next_due(task), task.arrival, task.id, slot};
  order_.insert(entries_[slot]);
}

StepPlan Edf::plan(const View& view) {
  StepBuilder step(view, max_batch_);
  never_run_.reject(step);

  auto spared = holders_.end();  // holders from here on have lost their KV to this step
  const auto make_room = [&](int32_t blocks, const Ranked& user) {
    while (step.free_blocks() < blocks) {
      if (spared == holders_.begin() || *std::prev(spared) <= user) return false;
      --spared;
      if (view.tasks[spared->slot].kv == KvState::device) step.evict(spared->slot);
    }
    return true;
  };

  const Order* walk = &order_;  // holders_ once the door is closed
  for (auto it = walk->begin(); it != walk->end();) {
    const Ranked entry = *it++;
    if (step.rows_left() == 0 || step.tokens_left() == 0) break;
    if (spared != holders_.end() && *spared <= entry) break;
    const TaskView& task = view.tasks[entry.slot];
    const bool open = walk == &order_;
    if (!open && task.kv != KvState::device) continue;
    const bool on_host = task.kv == KvState::host;
    const bool comes_back = task.kv != KvState::device && task.produced > 0;
    const int32_t tokens = task.ready_to_decode() ? 1 : step.whole_prefill(entry.slot);
    const int32_t blocks = step.growth(entry.slot, tokens) + (on_host ? task.blocks : 0);
    const auto fits = [&] {
      return comes_back ? blocks <= step.free_blocks() : make_room(blocks, entry);
    };
    if (tokens > 0 && fits()) {
      if (on_host) step.swap_in(entry.slot);
      if (task.ready_to_decode()) {
        step.decode(entry.slot);
      } else {
        step.prefill(entry.slot, tokens);
      }
    } else if (open) {
      walk = &holders_;
      it = holders_.upper_bound(entry);
    }
  }
  return step.take();
}

void Edf::commit(const StepPlan& plan, const StepOutcome& outcome, const View& view) {
  for (const KvAction& action : plan.kv) {
    if (action.kind == KvActionKind::drop) holders_.erase(entries_[action.slot]);
  }
  for (const PrefillChunk& chunk : plan.prefill) holders_.insert(entries_[chunk.slot]);
  for (int32_t slot : outcome.token_slots) {
    Ranked& entry = entries_[slot];
    order_.erase(entry);
    holders_.erase(entry);
    entry.rank = next_due(view.tasks[slot]);
    order_.insert(entry);
    holders_.insert(entry);
  }
}

std::string Edf::inspect() const {
  std::vector<int32_t> slots;
  std::vector<double> due;
  for (const Ranked& entry : order_) {
    slots.push_back(entry.slot);
    due.push_back(entry.rank * 1e3);
  }
  return JsonObject().add("slots", slots).add("due_ms", due).text();
}

}  // namespace

PolicyInfo edf_info() {
  return {"edf",
          "Liu and Layland, JACM 1973, section 7; a job is a task's next token",
          "The tasks whose next token is due first make the batch.",
          {{"max_batch", "16", "tasks in one step"}}};
}

std::unique_ptr<Policy> make_edf(const Parameters& parameters) {
  return std::make_unique<Edf>(parameters);
}

}  // namespace slicellm
