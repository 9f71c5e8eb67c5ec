// priority-pause: fixed rows for edge boxes, with some reserved for urgent tasks, which may also
// pause others for a while. It follows the rule of an edge product (first come or priority rows,
// maxPauseSteps, reserved rows) as far as that is public; the rest below is ours.
//
//  * Urgent: utility >= urgent_utility. Others take at most max_batch - reserved_rows rows.
//  * When all rows are taken and max_pause_steps > 0, an urgent task is admitted all the same, as
//    long as urgent tasks alone fit the rows. Each step then leaves out ordinary tasks, the last
//    admitted first; they keep their KV. One that was left out max_pause_steps times in a row takes
//    part in the next step before anybody else.
//  * order=priority: urgent tasks are admitted first, and the higher utility before the lower;
//    order=fcfs: by arrival, but an ordinary task that lacks a row holds up no urgent one.
//  * KV for the prompt and max_tokens is reserved at admission, as in orca: no KV is ever taken
//    back, and nobody overtakes a task that waits for KV. Prompts run whole beside decodes; one
//    that finds no room in the step is not overtaken either.
#include <algorithm>
#include <set>

#include "policy/json.h"
#include "policy/never_run.h"
#include "policy/policies.h"
#include "policy/step_builder.h"

namespace slicellm {
namespace {

class PriorityPause : public Policy {
 public:
  explicit PriorityPause(const Parameters& p)
      : max_batch_(p.integer("max_batch", 1, 1 << 20)),
        reserved_rows_(p.integer("reserved_rows", 0, 1 << 20)),
        max_pause_steps_(p.integer("max_pause_steps", 0, 1 << 30)),
        urgent_utility_(p.number("urgent_utility", 0, 1e12)),
        by_priority_(p.choice("order", {"priority", "fcfs"}) == "priority") {}

  std::string name() const override { return "priority-pause"; }
  void on(const TaskEvent& event, const View& view) override;
  StepPlan plan(const View& view) override;
  void commit(const StepPlan& plan, const StepOutcome& outcome, const View& view) override;
  std::string inspect() const override;

 private:
  struct Row {  // an admitted task
    int32_t slot = 0;
    bool urgent = false;
    int32_t paused = 0;  // steps it has been left out in a row
  };
  struct Limits {
    int32_t rows = 0, ordinary = 0;
  };

  Limits limits(const View& view) const {
    const int32_t rows = std::min({max_batch_, view.max_rows, view.max_step_tokens});
    return {rows, std::max(1, rows - reserved_rows_)};
  }
  bool is_urgent(const TaskView& task) const { return task.utility >= urgent_utility_; }
  std::vector<Row> admissible(const View& view) const;

  const int32_t max_batch_, reserved_rows_, max_pause_steps_;
  const double urgent_utility_;
  const bool by_priority_;
  std::vector<Row> rows_;               // by admission
  std::set<Ranked> urgent_, ordinary_;  // waiting
  std::vector<Ranked> entries_;         // by slot
  NeverRun never_run_;
};

void PriorityPause::on(const TaskEvent& event, const View& view) {
  const int32_t slot = event.slot;
  const TaskView& task = view.tasks[slot];
  std::set<Ranked>& queue = is_urgent(task) ? urgent_ : ordinary_;
  if (event.kind == TaskEventKind::finish) {
    if (never_run_.finish(slot)) return;
    if (std::erase_if(rows_, [&](const Row& row) { return row.slot == slot; }) > 0) return;
    queue.erase(entries_[slot]);
    return;
  }
  if (never_run_.arrive(slot, view)) return;
  if (entries_.size() <= static_cast<size_t>(slot)) entries_.resize(slot + 1);
  entries_[slot] = {by_priority_ ? -task.utility : 0, task.arrival, task.id, slot};
  queue.insert(entries_[slot]);
}

// The waiting tasks that rows and KV allow to join, in order.
std::vector<PriorityPause::Row> PriorityPause::admissible(const View& view) const {
  const Limits limit = limits(view);
  int32_t urgent_rows = 0, ordinary_rows = 0;
  int64_t free = view.free_blocks;
  for (const Row& row : rows_) {
    (row.urgent ? urgent_rows : ordinary_rows) += 1;
    free -= most_growth(view.tasks[row.slot], view);
  }
  std::vector<Row> joined;
  auto urgent = urgent_.begin(), ordinary = ordinary_.begin();
  while (true) {
    const bool row_free = urgent_rows + ordinary_rows < limit.rows;
    const bool can_pause = max_pause_steps_ > 0 && urgent_rows < limit.rows;
    const bool may_urgent = urgent != urgent_.end() && (row_free || can_pause);
    const bool may_ordinary =
        ordinary != ordinary_.end() && row_free && ordinary_rows < limit.ordinary;
    if (!may_urgent && !may_ordinary) break;
    const bool takes_urgent = may_urgent && (!may_ordinary || by_priority_ || *urgent < *ordinary);
    const int32_t slot = takes_urgent ? urgent->slot : ordinary->slot;
    free -= most_growth(view.tasks[slot], view);
    if (free < 0) break;
    joined.push_back({slot, takes_urgent, 0});
    if (takes_urgent) {
      ++urgent, ++urgent_rows;
    } else {
      ++ordinary, ++ordinary_rows;
    }
  }
  return joined;
}

StepPlan PriorityPause::plan(const View& view) {
  StepBuilder step(view, limits(view).rows);
  never_run_.reject(step);

  std::vector<Row> rows = rows_;
  for (const Row& row : admissible(view)) rows.push_back(row);
  std::stable_partition(rows.begin(), rows.end(), [](const Row& row) { return row.urgent; });
  std::stable_partition(rows.begin(), rows.end(), [&](const Row& row) {
    return !row.urgent && row.paused > 0 && row.paused >= max_pause_steps_;
  });
  rows.resize(std::min<size_t>(rows.size(), step.rows_left()));

  for (const Row& row : rows) {
    if (view.tasks[row.slot].ready_to_decode()) step.decode(row.slot);
  }
  for (const Row& row : rows) {
    if (view.tasks[row.slot].ready_to_decode()) continue;
    if (!step.prefill(row.slot, step.whole_prefill(row.slot))) break;
  }
  return step.take();
}

void PriorityPause::commit(const StepPlan& plan, const StepOutcome&, const View& view) {
  if (!plan.runs()) return;
  for (Row& row : rows_) ++row.paused;
  const auto ran = [&](int32_t slot) {
    const auto row =
        std::find_if(rows_.begin(), rows_.end(), [&](const Row& r) { return r.slot == slot; });
    if (row != rows_.end()) {
      row->paused = 0;
      return;
    }
    const bool urgent = is_urgent(view.tasks[slot]);
    (urgent ? urgent_ : ordinary_).erase(entries_[slot]);
    rows_.push_back({slot, urgent, 0});
  };
  for (int32_t slot : plan.decode) ran(slot);
  for (const PrefillChunk& chunk : plan.prefill) ran(chunk.slot);
}

std::string PriorityPause::inspect() const {
  std::vector<int32_t> running, paused, waiting;
  for (const Row& row : rows_) {
    running.push_back(row.slot);
    paused.push_back(row.paused);
  }
  for (const Ranked& entry : urgent_) waiting.push_back(entry.slot);
  for (const Ranked& entry : ordinary_) waiting.push_back(entry.slot);
  return JsonObject()
      .add("running", running)
      .add("paused_steps", paused)
      .add("waiting", waiting)
      .text();
}

}  // namespace

PolicyInfo priority_pause_info() {
  return {"priority-pause",
          "ours, after the public rule of an edge product",
          "Rows reserved for urgent tasks, which may also pause others for a few steps.",
          {{"max_batch", "8", "rows of a step"},
           {"reserved_rows", "1", "rows that only urgent tasks may take"},
           {"max_pause_steps", "16", "steps in a row that a task may be left out; 0 = never"},
           {"urgent_utility", "10", "the least utility of an urgent task"},
           {"order", "priority", "priority: the higher utility first, or fcfs"}}};
}

std::unique_ptr<Policy> make_priority_pause(const Parameters& parameters) {
  return std::make_unique<PriorityPause>(parameters);
}

}  // namespace slicellm
