#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <queue>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/recorder.h"
#include "engine/task_table.h"
#include "kv/ledger.h"
#include "slicellm/clock.h"
#include "slicellm/engine.h"
#include "slicellm/executor.h"
#include "slicellm/latency_model.h"
#include "slicellm/policy.h"

namespace slicellm {

// A task that has ended, for whoever tells its caller.
struct EndedTask {
  std::shared_ptr<TaskResultBox> handle;
  FinishReason reason = FinishReason::none;
  std::string error;
  double time = 0;
};

// The road of a task, one step at a time: arrivals and deadlines become events for the policy, its
// plan is checked, applied to the KV ledger, lowered to a batch and submitted; the result settles
// the step. A plain loop settles each step before it plans the next. An overlapped one plans a step
// while the one before runs: that one is `predicted` as soon as it is submitted, and settled later.
// Holds no thread and no lock; used by one thread. Whatever throws (a policy, an executor, a broken
// plan) passes through `iterate`; then only `fail` may be called.
//
// KV blocks go back to the ledger when the loop decides so, also while a step in flight still uses
// them: whoever gets them next writes them in a later step, and steps take effect in order.
class Loop {
 public:
  Loop(std::shared_ptr<Executor> executor, std::unique_ptr<Policy> policy,
       std::unique_ptr<LatencyModel> latency, std::shared_ptr<Clock> clock,
       const EngineOptions& options);  // `options` must outlive the loop

  void enqueue(std::unique_ptr<TaskState> task);
  void cancel(TaskId id);  // unknown ids are ignored
  void cancel_all();

  // Takes in what is due, submits at most one step and settles what need not run on. Returns when
  // to come back: a time that has passed = at once, infinity = when there is something new.
  double iterate();
  // Ends every task with reason error. Does not call the policy. Never throws.
  void fail(const std::string& sentence) noexcept;

  // Time before the next `iterate` is idle time, no overhead.
  void restart_watch() { mark_ = Watch::now(); }

  bool running() const { return !in_flight_.empty(); }
  std::vector<EndedTask>& ended() { return ended_; }  // emptied by its reader
  Recorder& recorder() { return recorder_; }
  const Policy& policy() const { return *policy_; }
  const LatencyModel& latency() const { return *latency_; }
  EngineStats stats() const;  // without `submitted`
  void check_integrity() const;

 private:
  using Watch = std::chrono::steady_clock;
  struct Row {  // a sequence of the batch and its slot
    int32_t slot = 0;
    int32_t tokens = 0;
    bool prefill = false, sampled = false;
    int32_t drafts = 0;  // beside `tokens`
  };
  struct Leaving {  // a task that ends with a step
    int32_t slot;
    FinishReason reason;
    std::string error;
  };
  // A plan that was applied, until its result has come.
  struct Step {
    StepPlan plan;
    StepOutcome outcome;
    double expected = 0;                                    // seconds, by the latency model
    double end = -std::numeric_limits<double>::infinity();  // predicted, then real
    bool runs = false;                                      // there is a batch, and its ticket
    bool is_decode = false;                                 // nothing but single tokens
    bool predicted = false;                                 // the policy has been told what it did
    bool can_chain = true;                                  // all its sampled rows
    Ticket ticket = 0;
    std::vector<Row> rows;
    std::vector<Leaving> leaving;
    std::vector<LogEvent> opening;  // events of its start, until that has come
  };

  View make_view(double now) const;
  template <typename Call>
  void call_policy(Call call) {
    const auto start = Watch::now();
    call(*policy_);
    policy_seconds_ += std::chrono::duration<double>(Watch::now() - start).count();
  }
  void take_in(double now);
  std::string refusal(const TaskState& task) const;  // why it can never fit, or empty
  void end_scheduled(std::unique_ptr<TaskState> task, FinishReason reason, std::string error,
                     double now);
  void leave(int32_t slot, FinishReason reason, double now);
  void finish(int32_t slot, FinishReason reason, std::string error, double now);
  void clear(int32_t slot);
  void count_shared_blocks();
  double next_time();

  bool submit_next(double now, double* wake);
  void submit(StepPlan plan, double now);
  Batch lower(Step& step);
  void move_kv(Step& step, Batch& batch);
  int32_t reuse_prefix(Step& step, int32_t slot, int32_t tokens);
  void add_row(Step& step, int32_t slot, int32_t tokens, bool prefill, Batch& batch);
  std::optional<DraftBudget> draft_budget(const Step& step);
  void add_drafts(Row& row, DraftBudget& budget, Batch& batch);
  void add_padding(int32_t past, int32_t tokens, bool sample, Batch& batch);
  void predict(Step& step);
  void predict_times(Step& step);
  void advance(const Row& row);
  void begin(Step& step, double start);
  void settle();
  StepResult wait_for(Step& step);
  void settle_rows(Step& step, StepResult& result);
  FinishReason settle_samples(Step& step, const Row& row, std::span<RowResult> samples);
  FinishReason settle_token(TaskState& task, RowResult& row, double end);
  void commit(const Step& step);
  void record(const Step& step);

  std::shared_ptr<Executor> executor_;
  std::unique_ptr<Policy> policy_;
  std::unique_ptr<LatencyModel> latency_;
  std::shared_ptr<Clock> clock_;
  const EngineOptions& options_;

  std::map<std::pair<double, TaskId>, std::unique_ptr<TaskState>> scheduled_;
  std::unordered_map<TaskId, double> scheduled_arrival_;
  using Deadline = std::pair<double, TaskId>;
  std::priority_queue<Deadline, std::vector<Deadline>, std::greater<>> deadlines_;
  TaskTable table_;
  KvLedger ledger_;
  PlanChecker checker_;
  Recorder recorder_;
  std::vector<EndedTask> ended_;
  EngineStats stats_;
  bool shares_ = false;  // some block was shared at the last look
  bool dirty_ = false;   // something has lived since the last idle check

  std::deque<Step> in_flight_;       // oldest first
  std::vector<BlockTable> scratch_;  // KV of padding, while the step is lowered
  std::vector<int32_t> drafts_;      // of one row, likewise

  Watch::time_point mark_ = Watch::now();  // where the overhead of the next step begins
  double policy_seconds_ = 0, executor_seconds_ = 0;
};

}  // namespace slicellm
