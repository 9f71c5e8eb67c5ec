// slice: utility-rate selection and decode-mask matrix (arXiv 2510.18544).
//
// After each arrival and departure: (1) select tasks by utility rate U * TPOT while the estimate of
// a cycle of the chosen set, sorted by rate, stays within ratio * cycle; (2) make the mask matrix
// of their rates and scan its columns from the first one, wrapping, one step a column. A rebuild
// starts again at column 0, as published.
//
// Where the paper is silent:
//  * l(b) is taken at the mean length (prompt + output so far) of the tasks that could be selected.
//  * The selected tasks' KV, with all they can append within a cycle, must fit on the device. When
//    a cycle ends and the next one's growth no longer fits, the selection is made again.
//  * A selected task that is not prefilled yet takes part in every step until it is: one step, its
//    first column, unless its prompt is longer than what the step has room for.
//  * A prefill that cannot be cut and does not fit beside a column's decodes gets a step of its
//    own, and the scan stays where it is.
#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "policy/json.h"
#include "policy/mask_matrix.h"
#include "policy/never_run.h"
#include "policy/policies.h"
#include "policy/step_builder.h"

namespace slicellm {
namespace {

// Quotients such as 1 s / 0.05 s and sums of step times carry rounding errors of about 1e-15; they
// must not turn a rate of 20 into 21 or refuse a cycle that is exactly full.
constexpr double kRounding = 1e-9;

struct Task {
  TaskId id = 0;
  double arrival = 0, utility = 0;
  double weight = 0;         // TPOT target in seconds; 1 for a best-effort task
  bool best_effort = false;  // neither TPOT nor deadline
  int32_t rate = 1;          // v: tokens a cycle
  int32_t class_id = 0;
  double last_served = 0;  // end of its last step, or its arrival
  bool begun = false;      // has prefilled since its last token
};

struct Selection {
  std::vector<int32_t> slots;  // matrix rows, by rate; equal rates by utility rate
  MaskMatrix matrix;
  int32_t column = 0;                    // scanned next
  double estimate = 0;                   // of one cycle, seconds
  std::vector<int32_t> boosted_classes;  // as of the selection
};

class Slice : public Policy {
 public:
  explicit Slice(const Parameters& p)
      : ratio_(p.positive("ratio", 100)),
        cycle_(p.positive("cycle_ms", 1e6) / 1e3),
        layout_(p.choice("mask_layout", {"packed", "spread"}) == "packed" ? MaskLayout::packed
                                                                          : MaskLayout::spread),
        boost_after_(p.number("boost_after_ms", 0, 1e9) / 1e3),
        boost_utility_(p.number("boost_utility", 0, 1e9)),
        age_after_(p.number("age_after_ms", 0, 1e9) / 1e3),
        age_factor_(p.number("age_factor", 0, 1)) {}

  std::string name() const override { return "slice"; }
  void on(const TaskEvent& event, const View& view) override;
  StepPlan plan(const View& view) override;
  void commit(const StepPlan& plan, const StepOutcome& outcome, const View& view) override;
  std::string inspect() const override;

 private:
  struct ClassState {
    int32_t live = 0;
    double unserved_since = 0;
  };

  Task describe(const TaskView& view) const;
  bool before(int32_t a, int32_t b) const;
  Selection select(const View& view) const;
  // The slots to walk, most valuable first, when utilities change with time.
  std::vector<int32_t> ranked(const View& view, const std::vector<int32_t>& boosted) const;
  std::vector<int32_t> overdue_classes(const View& view) const;
  bool must_rebuild(const View& view) const;
  // KV blocks that a task may hold at the end of a cycle in which it is selected.
  int64_t need(int32_t slot, const View& view) const;
  StepPlan plan_column(const View& view);
  // Frees blocks until `blocks` are free, least valuable holder outside the selection first.
  bool make_room(int32_t blocks, StepBuilder& step, size_t& cursor) const;
  const Selection& active() const { return rebuilt_ ? next_ : current_; }

  const double ratio_, cycle_;
  const MaskLayout layout_;
  const double boost_after_, boost_utility_, age_after_, age_factor_;  // *_after_ 0: off

  std::vector<Task> tasks_;     // by slot
  std::vector<int32_t> order_;  // slots, most valuable first
  NeverRun never_run_;
  std::map<int32_t, ClassState> classes_;
  uint64_t events_ = 0, built_at_ = 0;  // arrivals and departures: all, those in `current_`
  Selection current_;

  // The last proposal; commit adopts it.
  Selection next_;
  bool rebuilt_ = false;  // made with next_, not with current_
  uint64_t planned_at_ = 0;
  bool advances_ = false;  // runs a column
};

Task Slice::describe(const TaskView& view) const {
  Task task;
  task.id = view.id;
  task.arrival = task.last_served = view.arrival;
  task.utility = view.utility;
  task.class_id = view.class_id;
  task.best_effort = !token_time(view);
  task.weight = token_time(view).value_or(1);
  if (!task.best_effort) {
    const double rate = std::ceil(cycle_ / task.weight * (1 - kRounding));
    task.rate = static_cast<int32_t>(std::clamp(rate, 1.0, 1e9));
  }
  return task;
}

// By utility rate; best effort last; ties by arrival, then id.
bool Slice::before(int32_t a, int32_t b) const {
  const Task &x = tasks_[a], &y = tasks_[b];
  if (x.best_effort != y.best_effort) return y.best_effort;
  const double rate_x = x.utility * x.weight, rate_y = y.utility * y.weight;
  if (rate_x != rate_y) return rate_x > rate_y;
  return x.arrival != y.arrival ? x.arrival < y.arrival : x.id < y.id;
}

void Slice::on(const TaskEvent& event, const View& view) {
  const int32_t slot = event.slot;
  const auto position = [&] {
    return std::lower_bound(order_.begin(), order_.end(), slot,
                            [&](int32_t a, int32_t b) { return before(a, b); });
  };
  ++events_;
  if (event.kind == TaskEventKind::arrive) {
    if (tasks_.size() <= static_cast<size_t>(slot)) tasks_.resize(slot + 1);
    tasks_[slot] = describe(view.tasks[slot]);
    if (never_run_.arrive(slot, view)) return;
    order_.insert(position(), slot);
    ClassState& state = classes_[tasks_[slot].class_id];
    if (state.live++ == 0) state.unserved_since = tasks_[slot].arrival;
    return;
  }
  if (never_run_.finish(slot)) return;
  order_.erase(position());
  const auto state = classes_.find(tasks_[slot].class_id);
  if (--state->second.live == 0) classes_.erase(state);
}

std::vector<int32_t> Slice::overdue_classes(const View& view) const {
  std::vector<int32_t> overdue;
  if (boost_after_ <= 0) return overdue;
  for (const auto& [id, state] : classes_) {
    if (view.now - state.unserved_since >= boost_after_) overdue.push_back(id);
  }
  return overdue;
}

std::vector<int32_t> Slice::ranked(const View& view, const std::vector<int32_t>& boosted) const {
  std::vector<double> value(tasks_.size());  // utility rate now, by slot
  std::vector<int32_t> slots = order_;
  for (int32_t slot : slots) {
    const Task& task = tasks_[slot];
    const bool aged = age_after_ > 0 && view.now - task.last_served >= age_after_;
    value[slot] = task.utility * (aged ? age_factor_ : 1) * task.weight;
  }
  for (int32_t class_id : boosted) {  // the oldest task of each
    for (int32_t slot : view.live) {
      const Task& task = tasks_[slot];
      if (task.class_id != class_id) continue;
      value[slot] = std::max(value[slot], boost_utility_ * task.weight);
      break;
    }
  }
  std::stable_sort(slots.begin(), slots.end(), [&](int32_t a, int32_t b) {
    if (tasks_[a].best_effort != tasks_[b].best_effort) return tasks_[b].best_effort;
    return value[a] > value[b];
  });
  return slots;
}

int64_t Slice::need(int32_t slot, const View& view) const {
  const TaskView& task = view.tasks[slot];
  const int64_t after_cycle = int64_t{task.prompt_len} + task.produced + tasks_[slot].rate;
  return view.blocks_for(std::min(most_kv_tokens(task), after_cycle));
}

Selection Slice::select(const View& view) const {
  Selection s;
  s.boosted_classes = overdue_classes(view);
  const bool changing = boost_after_ > 0 || age_after_ > 0;
  const std::vector<int32_t> now_ranked =
      changing ? ranked(view, s.boosted_classes) : std::vector<int32_t>();
  const std::vector<int32_t>& walk = changing ? now_ranked : order_;
  const size_t limit = std::min<size_t>(walk.size(), std::min(view.max_rows, view.max_step_tokens));

  double context = 0;
  for (size_t i = 0; i < limit; ++i) {
    context += view.tasks[walk[i]].prompt_len + view.tasks[walk[i]].produced;
  }
  const double budget = cycle_ * ratio_ * (1 + kRounding);
  std::vector<int32_t> rates;
  std::vector<double> step;  // l(1), l(2), ...
  int64_t blocks = 0;
  for (size_t i = 0; i < limit; ++i) {
    const int32_t slot = walk[i], rate = tasks_[slot].rate;
    step.push_back(view.latency->decode_step(static_cast<int32_t>(i) + 1, context / limit));
    const auto at = std::upper_bound(rates.begin(), rates.end(), rate, std::greater<>());
    const auto row = at - rates.begin();
    rates.insert(at, rate);
    blocks += need(slot, view);
    const double estimate = cycle_estimate(rates, step);
    if (i > 0 && (estimate > budget || blocks > view.total_blocks)) {
      rates.erase(rates.begin() + row);
      break;
    }
    s.slots.insert(s.slots.begin() + row, slot);
    s.estimate = estimate;
    if (estimate > budget) break;  // too fast to fit: alone
  }
  s.matrix = MaskMatrix(std::move(rates), layout_);
  return s;
}

bool Slice::must_rebuild(const View& view) const {
  if (built_at_ != events_) return true;
  // A boost waits for the next token of prompts that have begun: classes overdue in turn would
  // otherwise drop each other's half-made prompts for ever.
  const bool begun = std::any_of(current_.slots.begin(), current_.slots.end(), [&](int32_t slot) {
    return view.tasks[slot].cached > 0 && tasks_[slot].begun;
  });
  for (int32_t class_id : begun ? std::vector<int32_t>() : overdue_classes(view)) {
    const auto& known = current_.boosted_classes;
    if (std::find(known.begin(), known.end(), class_id) == known.end()) return true;
  }
  if (current_.column != 0 || current_.slots.size() < 2) return false;
  int64_t blocks = 0;
  for (int32_t slot : current_.slots) blocks += need(slot, view);
  return blocks > view.total_blocks;
}

bool Slice::make_room(int32_t blocks, StepBuilder& step, size_t& cursor) const {
  const std::vector<int32_t>& kept = active().slots;
  while (step.free_blocks() < blocks) {
    if (cursor == 0) return false;
    const int32_t slot = order_[--cursor];
    if (step.view().tasks[slot].kv != KvState::device) continue;
    if (std::find(kept.begin(), kept.end(), slot) == kept.end()) step.evict(slot);
  }
  return true;
}

StepPlan Slice::plan(const View& view) {
  planned_at_ = events_;
  rebuilt_ = must_rebuild(view);
  if (rebuilt_) next_ = select(view);
  StepPlan plan = plan_column(view);
  if (plan.empty() && !rebuilt_ && !order_.empty()) {
    // Guessed tokens let tasks outgrow within a cycle what they were selected with.
    rebuilt_ = true;
    next_ = select(view);
    plan = plan_column(view);
  }
  return plan;
}

// The step of the present column of the selection in force.
StepPlan Slice::plan_column(const View& view) {
  const Selection& s = active();

  StepBuilder step(view, view.max_rows);
  never_run_.reject(step);

  int32_t decodes = 0;
  int32_t alone = -1;  // a prefill that needs the step for itself
  for (int32_t row = 0; row < s.matrix.rows(); ++row) {
    decodes += s.matrix.at(row, s.column) && view.tasks[s.slots[row]].ready_to_decode();
  }
  for (int32_t slot : s.slots) {
    const TaskView& task = view.tasks[slot];
    if (task.ready_to_decode()) continue;
    if (!task.prefill_divisible && task.pending() > view.max_step_tokens - decodes) alone = slot;
    break;
  }

  size_t cursor = order_.size();
  const auto place = [&](int32_t slot, int32_t tokens) {  // KV for it on the device
    const bool on_host = view.tasks[slot].kv == KvState::host;
    const int32_t held = on_host ? view.tasks[slot].blocks : 0;
    return make_room(held + step.growth(slot, tokens), step, cursor) &&
           (!on_host || step.swap_in(slot));
  };
  advances_ = alone < 0;
  for (int32_t row = 0; row < s.matrix.rows() && alone < 0; ++row) {
    const int32_t slot = s.slots[row];
    if (!s.matrix.at(row, s.column) || !view.tasks[slot].ready_to_decode()) continue;
    if (place(slot, 1)) step.decode(slot);
  }
  for (int32_t slot : s.slots) {
    if (view.tasks[slot].ready_to_decode()) continue;
    const int32_t tokens = step.whole_prefill(slot);
    if (tokens > 0 && place(slot, tokens)) step.prefill(slot, tokens);
    if (alone >= 0) break;
  }
  return step.take();
}

void Slice::commit(const StepPlan& plan, const StepOutcome& outcome, const View& view) {
  if (rebuilt_) {
    std::swap(current_, next_);
    built_at_ = planned_at_;
    rebuilt_ = false;
  }
  if (advances_ && plan.runs()) {
    current_.column = (current_.column + 1) % current_.matrix.columns();
  }
  const auto served = [&](int32_t slot) {
    tasks_[slot].last_served = view.now;
    if (boost_after_ <= 0) return;
    const auto state = classes_.find(tasks_[slot].class_id);
    if (state != classes_.end()) state->second.unserved_since = view.now;
  };
  for (int32_t slot : plan.decode) served(slot);
  for (const PrefillChunk& chunk : plan.prefill) {
    served(chunk.slot);
    tasks_[chunk.slot].begun = true;
  }
  for (int32_t slot : outcome.token_slots) tasks_[slot].begun = false;
}

std::string Slice::inspect() const {
  constexpr int32_t kMaxColumns = 1000;  // a wider matrix is given by its rates alone
  const Selection& s = active();
  std::vector<TaskId> ids;
  std::string matrix = "[";
  for (int32_t row = 0; row < s.matrix.rows(); ++row) {
    ids.push_back(tasks_[s.slots[row]].id);
    if (s.matrix.columns() > kMaxColumns) continue;
    matrix += row ? ",\"" : "\"";
    for (int32_t j = 0; j < s.matrix.columns(); ++j) matrix += s.matrix.at(row, j) ? '1' : '.';
    matrix += '"';
  }
  std::vector<int32_t> waiting;
  for (int32_t slot : order_) {
    if (std::find(s.slots.begin(), s.slots.end(), slot) == s.slots.end()) waiting.push_back(slot);
  }
  return JsonObject()
      .add("selected", s.slots)
      .add("ids", ids)
      .add("rates", s.matrix.rates())
      .add("waiting", waiting)
      .add("estimate_ms", s.estimate * 1e3)
      .add("budget_ms", cycle_ * ratio_ * 1e3)
      .add("layout", layout_ == MaskLayout::packed ? "packed" : "spread")
      .add("column", s.column)
      .add("columns", s.matrix.columns())
      .raw("matrix", matrix += ']')
      .text();
}

}  // namespace

PolicyInfo slice_info() {
  return {"slice",
          "SLICE, arXiv 2510.18544",
          "Selects tasks by utility rate and gives each its token rate by a decode-mask matrix.",
          {{"ratio", "1", "share of the cycle that the selected tasks may fill"},
           {"cycle_ms", "1000", "length of a cycle"},
           {"mask_layout", "packed", "packed: ones at the left, as published; spread: even gaps"},
           {"boost_after_ms", "0", "raise the oldest task of a class unserved so long; 0 = off"},
           {"boost_utility", "10", "the utility it is raised to"},
           {"age_after_ms", "0", "reduce the utility of a task unserved so long; 0 = off"},
           {"age_factor", "0.1", "what its utility is multiplied with"}}};
}

std::unique_ptr<Policy> make_slice(const Parameters& parameters) {
  return std::make_unique<Slice>(parameters);
}

}  // namespace slicellm
