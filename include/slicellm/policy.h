#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "slicellm/batch.h"
#include "slicellm/latency_model.h"
#include "slicellm/task.h"

namespace slicellm {

enum class KvState { none, device, host };

// One row of the task table as a policy sees it. Never the true output length.
struct TaskView {
  TaskId id = -1;        // -1: an empty row
  int32_t class_id = 0;  // same class name, same number
  double utility = 1;
  Slo slo;
  double arrival = 0;  // seconds on the engine's clock
  int32_t prompt_len = 0;
  int32_t max_tokens = 0;         // cap on the output length
  bool prefill_divisible = true;  // false: prompt + output so far must be one chunk
  int32_t produced = 0;           // output tokens so far
  int32_t cached = 0;             // tokens whose K and V exist (device or host)
  double first_token_time = std::numeric_limits<double>::quiet_NaN();
  double last_token_time = std::numeric_limits<double>::quiet_NaN();
  KvState kv = KvState::none;
  int32_t blocks = 0;  // KV blocks held, on the side that `kv` says
  int32_t shared = 0;  // those of them that other tasks hold too (a common prefix)
  FinishReason ended = FinishReason::none;  // why it ended; set while its end is told

  // Tokens known but not in KV. A first pass or a recompute has more than one (or produced == 0).
  int32_t pending() const { return prompt_len + produced - cached; }
  // Blocks that are free once the task's KV is dropped or swapped out.
  int32_t freed() const { return blocks - shared; }
  bool ready_to_decode() const { return produced > 0 && pending() == 1; }
};

// What a policy may look at when it plans. Spans are valid during the call only.
struct View {
  double now = 0;
  std::span<const TaskView> tasks;  // indexed by slot; rows with id -1 are empty
  std::span<const int32_t> live;    // slots in use, by arrival then id
  int32_t block_tokens = 16;
  int32_t total_blocks = 0, free_blocks = 0;            // device KV
  int32_t total_host_blocks = 0, free_host_blocks = 0;  // host KV (swap)
  size_t block_bytes = 0;
  int32_t max_rows = 0;         // tasks that may take part in one step
  int32_t max_step_tokens = 0;  // tokens that one step may hold
  const LatencyModel* latency = nullptr;

  int32_t blocks_for(int64_t tokens) const {
    return static_cast<int32_t>((tokens + block_tokens - 1) / block_tokens);
  }
};

struct PrefillChunk {
  int32_t slot = 0;
  int32_t tokens = 0;  // 1 .. pending()
  bool operator==(const PrefillChunk&) const = default;
};

enum class KvActionKind {
  swap_out,  // device -> host
  swap_in,   // host -> device
  drop,      // forget KV; a later prefill of prompt + output recomputes it
};
struct KvAction {
  KvActionKind kind = KvActionKind::drop;
  int32_t slot = 0;
  bool operator==(const KvAction&) const = default;
};

struct Ending {  // the policy ends a task
  int32_t slot = 0;
  FinishReason reason = FinishReason::rejected;  // rejected or deadline
  std::string message;                           // rejected: one sentence for the caller
  bool operator==(const Ending&) const = default;
};

// Why a policy expects a task to miss its targets.
enum class MissCause {
  not_admitted,  // its work never fitted beside that of tasks of more value
  too_late,      // admitted, but its first token can no longer be in time
  starved,       // begun, then paused for tasks of more value until it could not catch up
  length,        // its output became longer than nine in ten were believed to be
  slow_steps,    // steps took longer than predicted
};
const char* to_string(MissCause cause);

struct Relegation {  // from now on the policy serves the task after all that can still make it
  int32_t slot = 0;
  MissCause cause = MissCause::not_admitted;
  bool operator==(const Relegation&) const = default;
};

// What a static batch computes for nobody. It costs time, rows, tokens and, during the step, KV
// blocks, like the work of tasks; nothing is drawn from it. The tasks of the batch do not attend to
// it: their own results are those of a step without padding.
struct Padding {
  std::vector<int32_t> rows;     // decode rows past their task's end: tokens in KV of each, >= 1
  std::vector<int32_t> prompts;  // prompts filled up to the longest: pad tokens of each, >= 1

  bool empty() const { return rows.empty() && prompts.empty(); }
  int32_t prompt_tokens() const { return std::accumulate(prompts.begin(), prompts.end(), 0); }
  bool operator==(const Padding&) const = default;
};

// A policy's proposal for the next step. KV actions run first, in order; then endings; then the
// step. A task that is not named is paused: it keeps its KV and waits.
struct StepPlan {
  std::vector<PrefillChunk> prefill;
  std::vector<int32_t> decode;  // slots with ready_to_decode()
  std::vector<KvAction> kv;
  std::vector<Ending> endings;
  Padding padding;
  std::vector<Relegation> relegated;  // for the event log; a task at most once in its life
  double wake_at = std::numeric_limits<double>::infinity();  // when nothing is to run

  bool runs() const { return !prefill.empty() || !decode.empty() || !padding.empty(); }
  bool empty() const { return !runs() && kv.empty() && endings.empty() && relegated.empty(); }
  bool operator==(const StepPlan&) const = default;
};

// What the latency model needs to know of a plan. `plan` must be valid for `view`.
StepFeatures features_of(const StepPlan& plan, const View& view);

// Replays plans on the block ledger that a view describes. Runs in release builds too; the cost is
// that of the plan, not of the table: the scratch is kept between calls. Not thread-safe.
class PlanChecker {
 public:
  // Throws Error(state) that names the rule broken: a slot unused or twice, a decode row not ready
  // or off the device, a chunk or padding of the wrong size, rows, tokens or blocks beyond the
  // limits, KV moved from where it is not, a task relegated twice, an ending that is no refusal, or
  // nothing to run and no time to wake although tasks are live.
  void check(const StepPlan& plan, const View& view);

 private:
  // A slot as the KV actions of the plan leave it; valid where `stamp` is the current check's.
  struct Slot {
    uint64_t stamp = 0;
    KvState kv = KvState::none;
    int32_t blocks = 0, freed = 0, cached = 0;
    bool used = false;  // runs or ends
    bool relegated = false;
  };
  Slot& touch(const char* list, size_t index, int32_t slot, const View& view);

  std::vector<Slot> slots_;
  uint64_t stamp_ = 0;
};

enum class TaskEventKind { arrive, finish };
struct TaskEvent {
  TaskEventKind kind = TaskEventKind::arrive;
  int32_t slot = 0;
};

// What became of a committed plan, or what is believed to become of it where the engine plans the
// next step while this one runs (LoopKind::overlap): then times are predicted, every row that was
// due a token has produced one, and tasks that reach their cap have ended by their length. A task
// whose token ends it may take part in one more step before its `finish` is told; its row tells the
// truth then.
struct StepOutcome {
  double start = 0, duration = 0;    // seconds; duration 0 for a plan that ran no step
  StepFeatures features;             // drafts included, each counted as a decode row
  std::vector<int32_t> token_slots;  // slots that produced tokens: one each, more with drafts
};

// Is told by a simulated run how many tokens each task will produce, before the task arrives. No
// view carries that.
class LengthListener {
 public:
  virtual ~LengthListener() = default;
  virtual void tell(TaskId id, int32_t output_tokens) = 0;
};

// A scheduler: a deterministic state machine. It reads no clock, touches no weight, takes no lock.
// Feeding it recorded events and views gives identical plans. Called by one thread, in this order:
//   on(...)*  plan  [commit  on(finish)*]
// Events come between a commit and the next plan. A plan that was applied is committed, also one
// that ran no step; a plan that was dropped is not, and then plan is called again.
class Policy {
 public:
  virtual ~Policy() = default;
  virtual std::string name() const = 0;

  // A task arrived (its row is in `view` and live) or ended for any reason (its row
  // `view.tasks[event.slot]` is still readable; it holds no KV any more and is not live).
  virtual void on(const TaskEvent& event, const View& view) = 0;

  // Proposes the next step. Must not advance the policy: a plan that is dropped changes nothing.
  virtual StepPlan plan(const View& view) = 0;

  // The last proposed plan was applied; `view` is the table after the step, with the rows of tasks
  // that ended by it. Advances scan positions, queues, learning.
  virtual void commit(const StepPlan& plan, const StepOutcome& outcome, const View& view) = 0;

  // Where to tell true output lengths, for the variants that measure what not knowing them costs;
  // null for policies that serve. Only a simulated run tells them; Engine::make refuses others.
  virtual LengthListener* length_listener() { return nullptr; }

  // Whether decode rows may carry drafts (EngineOptions::prompt_lookup), so that a task produces
  // several tokens in a step. Not where a batch's rows go on in step.
  virtual bool takes_drafts() const { return true; }

  // A snapshot of the policy's state for people and tests, as JSON.
  virtual std::string inspect() const { return "{}"; }
};

struct PolicyParameter {
  std::string name, default_value, help;
};
struct PolicyInfo {
  std::string name, source, summary;  // source: paper and section
  std::vector<PolicyParameter> parameters;
};

std::vector<PolicyInfo> list_policies();

// "slice" or "slice:ratio=0.9,mask_layout=spread". Throws Error(invalid_argument) naming the policy
// or the parameter.
std::unique_ptr<Policy> make_policy(std::string_view text);

}  // namespace slicellm
