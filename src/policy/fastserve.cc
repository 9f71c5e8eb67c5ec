// fastserve: skip-join multi-level feedback queue (arXiv 2305.05920).
//
// Queue p has the quantum quantum * 2^p; queue 0 is served first. A task joins the first queue
// whose quantum covers its predicted prefill, moves one queue down (to its front) when its run time
// there exceeds the quantum, and comes to the front of queue 0 when it has not run for too long.
//
// Where the paper is silent:
//  * Tasks demoted or promoted together keep their order.
//  * Blocks for prompts and swap-ins are given in queue order: a task that is refused KV closes the
//    door for those behind it, or a long prompt could wait for ever.
//  * When no task at all can run (device and host full), the first one that holds KV does, and
//    holders at the tail are swapped out or dropped for it.
#include <algorithm>
#include <cmath>

#include "policy/json.h"
#include "policy/never_run.h"
#include "policy/policies.h"
#include "policy/step_builder.h"

namespace slicellm {
namespace {

constexpr int32_t kLevels = 40;  // 10 ms * 2^39 is 174 years

class FastServe : public Policy {
 public:
  explicit FastServe(const Parameters& p)
      : max_batch_(p.integer("max_batch", 1, 1 << 20)),
        max_prompt_tokens_(p.integer("max_prompt_tokens", 1, 1 << 30)),
        quantum_(p.positive("quantum_ms", 1e6) / 1e3),
        starvation_steps_(p.integer("starvation_steps", 1, 1 << 30)),
        starvation_(p.number("starvation_ms", 0, 1e9) / 1e3),
        host_reserve_(p.number("host_reserve", 0, 1)),
        queues_(kLevels) {}

  std::string name() const override { return "fastserve"; }
  void on(const TaskEvent& event, const View& view) override;
  StepPlan plan(const View& view) override;
  void commit(const StepPlan& plan, const StepOutcome& outcome, const View& view) override;
  std::string inspect() const override;

 private:
  // Queues are lists through the slots' nodes, so that every move is O(1).
  struct Node {
    int32_t previous = -1, next = -1;
    int32_t level = 0;
    double spent = 0;     // run time in this queue
    double last_run = 0;  // end of its last step, or its arrival
    uint64_t seen = 0;    // last plan that considered it or swapped it out
  };
  struct Queue {
    int32_t head = -1, tail = -1;
  };

  void push_front(int32_t slot, int32_t level);
  void push_back(int32_t slot, int32_t level);
  void unlink(int32_t slot);
  int32_t first(int32_t level) const;  // head of the first non-empty queue from `level` on
  int32_t after(int32_t slot) const;   // in queue order, -1 at the end
  int32_t before(int32_t slot) const;  // the other way
  int32_t last() const;
  double quantum(int32_t level) const { return std::ldexp(quantum_, level); }

  void choose(StepBuilder& step);
  bool make_room(int64_t blocks, StepBuilder& step);
  void run(int32_t slot, int32_t tokens, StepBuilder& step);
  bool is_chosen(int32_t slot) const;
  void swap_proactively(StepBuilder& step);
  void force_one(StepBuilder& step);

  const int32_t max_batch_, max_prompt_tokens_;
  const double quantum_;
  const int32_t starvation_steps_;
  const double starvation_, host_reserve_;

  std::vector<Queue> queues_;
  std::vector<Node> nodes_;  // by slot
  NeverRun never_run_;
  int64_t steps_ = 0;

  // The last proposal, and scratch while it is made.
  uint64_t plans_ = 0;
  std::vector<int32_t> chosen_;  // in queue order
  int32_t victim_ = -1;          // next candidate to be swapped out, from the tail upwards
  int64_t behind_ = 0;           // device blocks of tasks that are not considered yet
};

void FastServe::push_front(int32_t slot, int32_t level) {
  Node& node = nodes_[slot];
  Queue& queue = queues_[level];
  node.level = level;
  node.spent = 0;
  node.previous = -1;
  node.next = queue.head;
  (queue.head >= 0 ? nodes_[queue.head].previous : queue.tail) = slot;
  queue.head = slot;
}

void FastServe::push_back(int32_t slot, int32_t level) {
  Node& node = nodes_[slot];
  Queue& queue = queues_[level];
  node.level = level;
  node.spent = 0;
  node.next = -1;
  node.previous = queue.tail;
  (queue.tail >= 0 ? nodes_[queue.tail].next : queue.head) = slot;
  queue.tail = slot;
}

void FastServe::unlink(int32_t slot) {
  const Node& node = nodes_[slot];
  Queue& queue = queues_[node.level];
  (node.previous >= 0 ? nodes_[node.previous].next : queue.head) = node.next;
  (node.next >= 0 ? nodes_[node.next].previous : queue.tail) = node.previous;
}

int32_t FastServe::first(int32_t level) const {
  while (level < kLevels && queues_[level].head < 0) ++level;
  return level < kLevels ? queues_[level].head : -1;
}

int32_t FastServe::after(int32_t slot) const {
  return nodes_[slot].next >= 0 ? nodes_[slot].next : first(nodes_[slot].level + 1);
}

int32_t FastServe::before(int32_t slot) const {
  if (nodes_[slot].previous >= 0) return nodes_[slot].previous;
  int32_t level = nodes_[slot].level - 1;
  while (level >= 0 && queues_[level].tail < 0) --level;
  return level >= 0 ? queues_[level].tail : -1;
}

int32_t FastServe::last() const {
  int32_t level = kLevels - 1;
  while (level >= 0 && queues_[level].tail < 0) --level;
  return level >= 0 ? queues_[level].tail : -1;
}

void FastServe::on(const TaskEvent& event, const View& view) {
  const int32_t slot = event.slot;
  if (event.kind == TaskEventKind::finish) {
    if (!never_run_.finish(slot)) unlink(slot);
    return;
  }
  const TaskView& task = view.tasks[slot];
  if (nodes_.size() <= static_cast<size_t>(slot)) nodes_.resize(slot + 1);
  nodes_[slot] = {};
  nodes_[slot].last_run = task.arrival;
  if (never_run_.arrive(slot, view)) return;
  const double tokens = task.prompt_len;
  const double prefill = view.latency
                             ->predict({.tokens = task.prompt_len,
                                        .rows = 1,
                                        .chunk_work = tokens * tokens / 2,
                                        .prefill_tokens = task.prompt_len})
                             .median;
  int32_t level = 0;
  while (level < kLevels - 1 && quantum(level) < prefill) ++level;
  push_back(slot, level);
}

// Swaps out tasks that this plan has not considered, from the tail, until `blocks` are free.
bool FastServe::make_room(int64_t blocks, StepBuilder& step) {
  if (step.free_blocks() >= blocks) return true;
  if (step.free_blocks() + std::min<int64_t>(behind_, step.free_host_blocks()) < blocks) {
    return false;
  }
  while (step.free_blocks() < blocks && victim_ >= 0 && nodes_[victim_].seen != plans_) {
    const TaskView& task = step.view().tasks[victim_];
    if (task.kv == KvState::device) {
      if (!step.swap_out(victim_)) return false;
      nodes_[victim_].seen = plans_;
      behind_ -= task.freed();
    }
    victim_ = before(victim_);
  }
  return step.free_blocks() >= blocks;
}

void FastServe::choose(StepBuilder& step) {
  const View& view = step.view();
  bool prompts = view.free_host_blocks >= host_reserve_ * view.total_host_blocks;
  bool placing = true;  // may tasks still be given their first blocks on the device?
  int64_t on_host = view.total_host_blocks - view.free_host_blocks;
  behind_ = view.total_blocks - view.free_blocks;
  victim_ = last();

  for (int32_t slot = first(0); slot >= 0; slot = after(slot)) {
    const bool can_place = placing && (prompts || on_host > 0);
    if (step.rows_left() == 0 || step.tokens_left() == 0 || (behind_ <= 0 && !can_place)) break;
    if (nodes_[slot].seen == plans_) continue;  // swapped out for another
    nodes_[slot].seen = plans_;
    const TaskView& task = view.tasks[slot];
    const bool here = task.kv == KvState::device;
    if (here) behind_ -= task.freed();
    if (task.kv == KvState::host) on_host -= task.blocks;
    if (!here && !placing) continue;
    if (task.kv == KvState::none && !prompts) continue;

    const int32_t tokens = task.ready_to_decode() ? 1 : step.whole_prefill(slot);
    if (tokens == 0) {
      prompts = false;
      continue;
    }
    const int64_t growth = step.growth(slot, tokens);
    const int64_t moved = task.kv == KvState::host ? task.blocks : 0;
    const int64_t all = task.blocks + growth;
    const int64_t spare = here ? 0 : std::min<int64_t>(max_batch_, view.total_blocks - all);
    if (!make_room(moved + growth + spare, step)) {
      placing = placing && here;
      continue;
    }
    run(slot, tokens, step);
  }
}

// Adds a task, if there is room for its KV: what evicted tasks share is free only when the last of
// them has gone.
void FastServe::run(int32_t slot, int32_t tokens, StepBuilder& step) {
  const TaskView& task = step.view().tasks[slot];
  if (task.kv == KvState::host && !step.swap_in(slot)) return;
  if (task.ready_to_decode() ? step.decode(slot) : step.prefill(slot, tokens))
    chosen_.push_back(slot);
}

bool FastServe::is_chosen(int32_t slot) const {
  return std::find(chosen_.begin(), chosen_.end(), slot) != chosen_.end();
}

void FastServe::swap_proactively(StepBuilder& step) {
  const View& view = step.view();
  for (; step.free_blocks() < max_batch_ && victim_ >= 0; victim_ = before(victim_)) {
    if (view.tasks[victim_].kv != KvState::device || is_chosen(victim_)) continue;
    if (!step.swap_out(victim_)) break;
  }
  for (const KvAction& action : step.plan().kv) {
    if (action.kind == KvActionKind::swap_out) return;
  }
  int64_t on_host = view.total_host_blocks - step.free_host_blocks();
  for (int32_t slot = first(0); slot >= 0 && on_host > 0; slot = after(slot)) {
    const TaskView& task = view.tasks[slot];
    if (task.kv != KvState::host || is_chosen(slot)) continue;
    if (step.free_blocks() - task.blocks < max_batch_) break;
    step.swap_in(slot);
    on_host -= task.blocks;
  }
}

// Nothing could run: makes room for one task at any price.
void FastServe::force_one(StepBuilder& step) {
  const View& view = step.view();
  int32_t target = first(0);
  while (target >= 0 && view.tasks[target].kv == KvState::none) target = after(target);
  if (target < 0) target = first(0);
  if (target < 0) return;

  const TaskView& task = view.tasks[target];
  const int32_t tokens = task.ready_to_decode() ? 1 : step.whole_prefill(target);
  const int32_t blocks = step.growth(target, tokens) + (task.kv == KvState::host ? task.blocks : 0);
  for (int32_t slot = last(); step.free_blocks() < blocks && slot >= 0; slot = before(slot)) {
    if (slot != target && view.tasks[slot].kv == KvState::device) step.evict(slot);
  }
  run(target, tokens, step);
}

StepPlan FastServe::plan(const View& view) {
  ++plans_;
  chosen_.clear();
  StepBuilder step(view, max_batch_, max_prompt_tokens_);
  choose(step);
  const bool runs = step.plan().runs();
  StepBuilder forced(view, max_batch_, max_prompt_tokens_);
  if (runs) {
    swap_proactively(step);
  } else {
    force_one(forced);
  }
  StepBuilder& result = runs ? step : forced;
  never_run_.reject(result);
  return result.take();
}

void FastServe::commit(const StepPlan& plan, const StepOutcome& outcome, const View& view) {
  if (!plan.runs()) return;
  ++steps_;
  for (int32_t slot : chosen_) {
    nodes_[slot].spent += outcome.duration;
    nodes_[slot].last_run = view.now;
  }
  // Backwards, so that those who come to the front of a queue keep their order.
  for (auto slot = chosen_.rbegin(); slot != chosen_.rend(); ++slot) {
    const int32_t level = nodes_[*slot].level;
    if (nodes_[*slot].spent <= quantum(level) || level == kLevels - 1) continue;
    unlink(*slot);
    push_front(*slot, level + 1);
  }
  if (steps_ % starvation_steps_ != 0) return;
  std::vector<int32_t> starved;
  for (int32_t slot = last(); slot >= 0; slot = before(slot)) {
    if (view.now - nodes_[slot].last_run >= starvation_) starved.push_back(slot);
  }
  for (int32_t slot : starved) {
    unlink(slot);
    push_front(slot, 0);
  }
}

std::string FastServe::inspect() const {
  std::string queues = "[";
  for (int32_t level = 0; level < kLevels; ++level) {
    std::vector<int32_t> slots;
    for (int32_t slot = queues_[level].head; slot >= 0; slot = nodes_[slot].next) {
      slots.push_back(slot);
    }
    if (slots.empty()) continue;
    if (queues.size() > 1) queues += ',';
    queues += JsonObject()
                  .add("level", level)
                  .add("quantum_ms", quantum(level) * 1e3)
                  .add("slots", slots)
                  .text();
  }
  return JsonObject().raw("queues", queues += ']').add("steps", steps_).text();
}

}  // namespace

PolicyInfo fastserve_info() {
  return {"fastserve",
          "FastServe, arXiv 2305.05920",
          "Skip-join multi-level feedback queue with proactive swapping.",
          {{"max_batch", "16", "tasks in one step, and blocks kept free"},
           {"quantum_ms", "10", "quantum of the first queue; doubles from queue to queue"},
           {"max_prompt_tokens", "2048", "prompt tokens in one step"},
           {"starvation_steps", "1000", "steps between two looks for starving tasks"},
           {"starvation_ms", "3000", "a task that has not run so long starves"},
           {"host_reserve", "0.1", "share of host blocks below which no new prompt starts"}}};
}

std::unique_ptr<Policy> make_fastserve(const Parameters& parameters) {
  return std::make_unique<FastServe>(parameters);
}

}  // namespace slicellm
