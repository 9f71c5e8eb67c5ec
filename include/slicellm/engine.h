#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "slicellm/clock.h"
#include "slicellm/executor.h"
#include "slicellm/latency_model.h"
#include "slicellm/policy.h"
#include "slicellm/task.h"

namespace slicellm {

// What a task goes through. Every task has one `arrive` and one `finish` or `reject`; the events of
// a task are in order. A pause is no event: it is the absence of tokens.
enum class EventKind {
  arrive,    // at its scheduled arrival
  admit,     // start of the first step that it takes part in
  prefill,   // end of a step with a chunk of it; value: tokens of the chunk
  token,     // end of the step that produced it; value: token id
  preempt,   // its KV is dropped, to be recomputed; value: tokens forgotten
  swap_out,  // its KV goes to the host; value: blocks
  swap_in,   // its KV comes back; value: blocks
  resume,    // start of its first step after preempt or swap_out
  relegate,  // the policy no longer expects it to keep its targets; value: MissCause
  finish,    // value: FinishReason
  reject,    // ended as rejected, instead of finish
};
const char* to_string(EventKind kind);

// One line of the event log, from which every metric is computed. Lines are in the order in which
// the loop learned of them: an arrival during a step follows the events of that step.
struct LogEvent {
  double t = 0;  // seconds on the engine's clock
  TaskId task = 0;
  EventKind kind = EventKind::arrive;
  int32_t value = 0;
};

// One step of the engine, for plan-time and step-time statistics. Plan and overhead are measured in
// real time, also under a virtual clock.
struct StepRecord {
  double start = 0, duration = 0;  // executor time, seconds
  double plan_seconds = 0;         // inside the policy (on, plan, commit) since the last step
  double overhead_seconds = 0;     // loop time outside policy and executor since the last step
  double predicted = 0;            // the latency model's median before the step
  StepFeatures features;           // what it was predicted from, padding included
  int32_t decode_rows = 0, prefill_tokens = 0, prefill_rows = 0;  // of tasks
  int32_t padding_rows = 0, padding_tokens = 0;  // decode rows and pads computed for nobody
};

struct Token {
  int32_t id = 0;
  double time = 0;  // engine clock
  float logprob = 0;
  std::vector<std::pair<int32_t, float>> top_logprobs;
};

// What became of a task. Final once `reason` is not none. `tokens` holds every token the model
// produced for it, the one that ended it (end of sequence, stop id, end of a stop string) included;
// `text` holds the text before that end. Nothing is computed or reported beyond it.
struct TaskResult {
  TaskId id = 0;
  FinishReason reason = FinishReason::none;
  std::string error;  // for reason error or rejected: one sentence
  double arrival = 0, finish_time = 0;
  int32_t prompt_tokens = 0;
  int32_t cached_tokens = 0;  // of the prompt, spared by the prefix cache
  std::vector<Token> tokens;
  std::string
      text;  // UTF-8 output without stop strings; empty if the engine has no id->bytes table
};

// The caller's end of a task. Thread-safe.
class TaskHandle {
 public:
  virtual ~TaskHandle() = default;
  virtual TaskId id() const = 0;
  // Blocks until there are tokens or text beyond what was taken, the end, or the timeout (seconds,
  // < 0 = for ever); returns what is new. `reason` in the result tells whether this was the last.
  virtual TaskResult take(double timeout) = 0;
  // Blocks until the task has ended; false on timeout (seconds, < 0 = for ever).
  virtual bool wait_done(double timeout) = 0;
  // Blocks until the task has ended; returns everything. Throws Error(state) on timeout.
  virtual TaskResult wait(double timeout) = 0;
  virtual bool done() const = 0;
  // Called whenever something new can be taken: from the engine thread, and once at once if there
  // is something already. Must not block and must not call the engine. Replaces an earlier one.
  virtual void on_update(std::function<void()> callback) = 0;
};

// When the next step is planned.
enum class LoopKind {
  plain,  // once the step that runs has ended, from what it gave
  // While it runs, from its predicted end: every row that is due a token is taken to yield one, and
  // the step to last what the latency model says. What only the token tells (end of sequence, stop
  // ids and strings) and what comes meanwhile (a deadline, a cancellation) takes effect one step
  // later at most: the step that runs ahead still computes the row, and what it yields is dropped.
  // Tokens are those of the plain loop.
  overlap,
};
LoopKind parse_loop(std::string_view text);  // "plain", "overlap"

struct EngineOptions {
  LoopKind loop = LoopKind::plain;
  int32_t max_rows = 64;           // tasks in one step
  int32_t max_step_tokens = 2048;  // tokens in one step
  int32_t max_context = 0;         // prompt + output; 0 = what the model and the KV pool allow
  int32_t max_queue = 100000;      // live tasks; beyond it submit is rejected
  bool prefill_divisible = true;   // from the model
  // Keep KV blocks of ended tasks while there is room, and share those of a common prefix. Needs a
  // divisible prefill (else it is off), and prompts whose token ids mean what they say.
  bool prefix_cache = false;
  // Most tokens that a decode row carries as guesses, from what followed the same words earlier in
  // its prompt or output (prompt-lookup decoding); 0 = off. The tokens of a task stay the same, bit
  // for bit, sampled ones too. Drafts ride along with a policy's plan where the latency model says
  // that they pay, the step stays within the smallest TPOT of its rows, and no KV block is needed
  // for them; not under policies that count a task's steps as its tokens. For the plain loop only.
  int32_t prompt_lookup = 0;
  int32_t vocab = 0;  // token ids are checked against it
  std::vector<int32_t> eos_ids;
  std::vector<std::string> token_bytes;  // id -> bytes, for text and stop strings; may be empty
  bool record_events = true;             // keep the event log and step records until drained
};

struct EngineStats {
  int64_t steps = 0, submitted = 0, finished = 0;
  int64_t decode_steps = 0, graph_steps = 0;        // of single tokens; StepResult::graph of them
  int64_t prefill_tokens = 0, reused_tokens = 0;    // computed; spared by the prefix cache
  int64_t drafted_tokens = 0, accepted_tokens = 0;  // guessed by prompt lookup; right ones of them
  int32_t live = 0, free_blocks = 0, total_blocks = 0, free_host_blocks = 0, total_host_blocks = 0;
  double busy_seconds = 0;
};

// Owns tasks, KV ledger, clock, one policy and one executor, and runs the loop on its own thread.
// All public methods are thread-safe; none may be called by a policy, an executor or an on_update
// callback. If the loop dies (its policy or executor throws, or a plan breaks a rule), every live
// task ends with reason error and the sentence, and submit, wait_idle, inspect_policy, latency_json
// and check_integrity throw Error(state) with it.
class Engine {
 public:
  // Throws Error(invalid_argument) for impossible options, a missing part, or a policy that has to
  // be told true output lengths.
  static std::unique_ptr<Engine> make(std::shared_ptr<Executor> executor,
                                      std::unique_ptr<Policy> policy,
                                      std::unique_ptr<LatencyModel> latency,
                                      std::shared_ptr<Clock> clock, const EngineOptions& options);
  virtual ~Engine() = default;  // close()

  // Throws Error(invalid_argument) for a bad task, Error(state) when closed, Error(resource) when
  // the queue is full. A task whose prompt + max_tokens can never fit is answered `rejected`.
  virtual std::shared_ptr<TaskHandle> submit(TaskSpec task) = 0;
  // Submits all atomically: the loop sees none or all, with `arrival` relative to this call's time.
  virtual std::vector<std::shared_ptr<TaskHandle>> submit_all(std::vector<TaskSpec> tasks) = 0;
  // Passes the wish on: the task ends as cancelled, unless it ends by itself in the step that runs
  // now. False: unknown or ended.
  virtual bool cancel(TaskId id) = 0;
  // Until no task is live or scheduled and no step runs; false on timeout (seconds, < 0 = for
  // ever).
  virtual bool wait_idle(double timeout = -1) = 0;
  // Cancels what is live, joins the loop. Later calls of submit throw Error(state).
  virtual void close() = 0;

  virtual double now() const = 0;
  virtual EngineStats stats() const = 0;
  virtual std::vector<LogEvent> drain_events() = 0;
  virtual std::vector<StepRecord> drain_steps() = 0;
  // These run between two steps on the loop's thread.
  virtual std::string inspect_policy() = 0;
  virtual std::string latency_json() = 0;  // the latency model as corrected so far
  // The block ledger adds up and, when idle, nothing is held. Throws Error(state). The loop checks
  // the same whenever it becomes idle.
  virtual void check_integrity() = 0;
};

}  // namespace slicellm
