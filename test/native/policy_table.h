#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "slicellm/policy.h"

namespace slicellm::test {

// 10 ms + 1.2 ms a row + 0.4 ms a prompt token, with a little for context, as a fitted model.
inline std::unique_ptr<LatencyModel> synthetic_step_times() {
  std::vector<LatencySample> samples;
  for (int32_t rows = 1; rows <= 64; ++rows) {
    samples.push_back({{.tokens = rows, .rows = rows, .context = rows * 100.0},
                       0.010 + 0.0012 * rows + 0.00001 * rows});
  }
  for (int32_t n = 16; n <= 2048; n *= 2) {
    samples.push_back({{.tokens = n, .rows = 1, .chunk_work = 0.5 * n * n, .prefill_tokens = n},
                       0.010 + 0.0004 * n});
  }
  return fit_latency_model(samples, "synthetic");
}

// Tasks with a KV ledger and a policy that schedules them: an engine without a model. Slots are
// fixed: the caller says where a task arrives. Tasks in even slots begin with the same
// `prefix_blocks` blocks, which those share that are on the device and have computed as much.
class PolicyTable {
 public:
  // Blocks of 16 tokens.
  PolicyTable(int32_t slots, int32_t blocks, int32_t host_blocks, int32_t max_rows,
              int32_t max_step_tokens, int32_t prefix_blocks = 0)
      : tasks_(slots), latency_(synthetic_step_times()), prefix_blocks_(prefix_blocks) {
    view_.total_blocks = view_.free_blocks = blocks;
    view_.total_host_blocks = view_.free_host_blocks = host_blocks;
    view_.block_bytes = 1 << 20;
    view_.max_rows = max_rows;
    view_.max_step_tokens = max_step_tokens;
    view_.latency = latency_.get();
  }

  const View& view() {
    view_.now = now_;
    view_.tasks = tasks_;
    view_.live = live_;
    return view_;
  }
  double now() const { return now_; }
  const std::vector<int32_t>& live() const { return live_; }
  const TaskView& task(int32_t slot) const { return tasks_[slot]; }

  // `task` gets the next id and arrives now, in an empty slot.
  void arrive(int32_t slot, TaskView task, Policy& policy) {
    task.id = next_id_++;
    task.arrival = now_;
    tasks_[slot] = task;
    live_.push_back(slot);
    policy.on({TaskEventKind::arrive, slot}, view());
  }

  void finish(int32_t slot, FinishReason reason, Policy& policy) {
    release(tasks_[slot]);
    live_.erase(std::find(live_.begin(), live_.end(), slot));
    tasks_[slot].ended = reason;
    count_blocks();
    policy.on({TaskEventKind::finish, slot}, view());
    tasks_[slot] = TaskView();
  }

  // Applies a checked plan; `outcome` is for Policy::commit, which is the caller's to call, as is
  // `finish` for the plan's endings after that.
  void apply(const StepPlan& plan, StepOutcome& outcome) {
    outcome.features = features_of(plan, view());
    outcome.start = now_;
    outcome.duration = plan.runs() ? latency_->predict(outcome.features).median : 0;
    outcome.token_slots.clear();
    now_ += outcome.duration;
    for (const KvAction& action : plan.kv) {
      TaskView& t = tasks_[action.slot];
      const TaskView held = t;
      release(t);
      if (action.kind == KvActionKind::drop) continue;
      t.cached = held.cached;
      t.blocks = held.blocks;
      t.kv = action.kind == KvActionKind::swap_out ? KvState::host : KvState::device;
    }
    for (const Ending& ending : plan.endings) release(tasks_[ending.slot]);
    for (const PrefillChunk& chunk : plan.prefill) append(chunk.slot, chunk.tokens, outcome);
    for (int32_t slot : plan.decode) append(slot, 1, outcome);
    count_blocks();
  }

 private:
  void release(TaskView& t) {
    t.cached = t.blocks = 0;
    t.kv = KvState::none;
  }

  void append(int32_t slot, int32_t tokens, StepOutcome& outcome) {
    TaskView& t = tasks_[slot];
    t.kv = KvState::device;
    t.cached += tokens;
    t.blocks = std::max(t.blocks, view_.blocks_for(t.cached));
    if (t.pending() > 0) return;
    if (t.produced++ == 0) t.first_token_time = now_;
    t.last_token_time = now_;
    outcome.token_slots.push_back(slot);
  }

  void count_blocks() {
    std::vector<TaskView*> sharing;
    int32_t held = 0, on_host = 0;
    for (size_t slot = 0; slot < tasks_.size(); ++slot) {
      TaskView& t = tasks_[slot];
      t.shared = 0;
      (t.kv == KvState::host ? on_host : held) += t.blocks;
      const bool whole = view_.blocks_for(t.cached + 1) > prefix_blocks_;
      if (slot % 2 == 0 && t.kv == KvState::device && whole) sharing.push_back(&t);
    }
    if (sharing.size() > 1) {
      for (TaskView* t : sharing) t->shared = prefix_blocks_;
      held -= prefix_blocks_ * (static_cast<int32_t>(sharing.size()) - 1);
    }
    view_.free_blocks = view_.total_blocks - held;
    view_.free_host_blocks = view_.total_host_blocks - on_host;
  }

  std::vector<TaskView> tasks_;
  std::vector<int32_t> live_;  // by arrival
  std::unique_ptr<LatencyModel> latency_;
  const int32_t prefix_blocks_;
  View view_;
  double now_ = 0;
  TaskId next_id_ = 0;
};

}  // namespace slicellm::test
