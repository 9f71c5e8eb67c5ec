#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "slicellm/dispatch.h"
#include "slicellm/engine.h"
#include "slicellm/executor.h"
#include "slicellm/kv_cache.h"
#include "slicellm/latency_model.h"
#include "slicellm/policy.h"
#include "slicellm/quantile_sketch.h"
#include "slicellm/task.h"

namespace slicellm {

// The machine that the sim executor stands for.
struct SimMachine {
  KvLayout kv;         // for block sizes; nothing is stored
  int32_t blocks = 0;  // device KV
  int32_t host_blocks = 0;
  double jitter = 0;  // a step's time is multiplied by exp(jitter * N(0, 1))
  // Measured instead, if not empty: quantiles of time / median, at equal steps from the least to
  // the greatest; a step's time is multiplied by a draw from them.
  std::vector<double> residuals;
  uint64_t seed = 0;  // of either
};

// Runs batches in virtual time: a step takes what `truth` predicts for it (its median; `truth` is
// never corrected), times a jitter that is a function of the seed and the step's number. Every
// token is 0; a task ends at its true output length, else at its cap.
// Throws Error(invalid_argument) for a jitter outside [0, 1], residuals that do not ascend from
// above 0, both of them, or a machine without blocks.
std::shared_ptr<Executor> make_sim_executor(std::unique_ptr<LatencyModel> truth,
                                            const SimMachine& machine);

// Tasks of a simulated run that are alike but for arrival and lengths. Policies see classes of one
// name as one class, as they do in an engine.
struct SimClass {
  std::string name = "default";
  Slo slo;
  double utility = 1;
};

// A prompt of no particular tokens. Tasks of a run are numbered by their place; their ids in the
// engine are that number + 1.
struct SimTask {
  double arrival = 0;  // seconds; ascending over the tasks of a run; ignored in a closed loop
  int32_t prompt_tokens = 1;
  int32_t output_tokens = 0;  // true length, hidden from policies that serve; 0 = max_tokens
  int32_t max_tokens = 1;
  int32_t class_id = 0;
};

// What became of each task, by its number. Times in seconds on the virtual clock, NaN where there
// is no token.
struct SimTaskResults {
  std::vector<double> arrival, first_token, last_token, finish, max_gap;
  std::vector<double> max_lateness;  // over tokens i: t_i - (arrival + ttft + i * tpot), NaN
                                     // unless the class has both targets
  std::vector<int32_t> tokens;
  std::vector<uint8_t> reason;  // FinishReason
};

struct SimOptions {
  EngineOptions engine;   // record_events: keep the event log and the step records in the result
  int32_t in_flight = 0;  // > 0: closed loop with so many tasks in flight
  // Called about every 0.1 s of real time with the number of ended tasks; may throw to stop.
  std::function<void(int64_t)> progress;
};

// An engine of a run, with what its policy is shown.
struct SimInstance {
  std::shared_ptr<Executor> executor;
  std::unique_ptr<Policy> policy;
  std::unique_ptr<LatencyModel> belief;
};

struct SimInstanceResult {
  int64_t num_steps = 0, ended = 0;  // ended: tasks
  double busy_seconds = 0;
  double end = 0;            // virtual time of its last step's end
  std::string latency_json;  // the belief as corrected by the run
  std::string policy_state;  // Policy::inspect at the end
};

struct SimResult {
  SimTaskResults tasks;
  std::vector<LogEvent> events;   // with record_events
  std::vector<StepRecord> steps;  // with record_events
  QuantileSketch gaps;            // seconds between a task's tokens, pooled
  QuantileSketch plan_seconds;    // real time inside the policy, a step
  int64_t num_steps = 0;
  double busy_seconds = 0, prefill_seconds = 0;  // of steps; a mixed one is divided by its tokens
  int64_t decode_steps = 0, decode_rows = 0;   // steps with decode rows; rows of them, with padding
  int64_t invalid_tokens = 0, pad_tokens = 0;  // padding: of rows past their end, of prompts
  double end = 0;                              // virtual time of the last end
  int32_t most_live = 0;
  std::vector<SimInstanceResult> instances;
  std::string dispatch_state;  // Dispatcher::inspect at the end
};

// Runs the engine's loop over `tasks` to their end on the calling thread, in virtual time: the very
// loop, KV ledger, plan check and policy that serve. Memory beyond the result is that of the live
// tasks. Throws what the policy or a broken plan throws, and Error(invalid_argument) for tasks out
// of order.
SimResult simulate(SimInstance instance, std::span<const SimClass> classes,
                   std::span<const SimTask> tasks, const SimOptions& options);

// The same with several engines, each with a clock of its own, and a dispatcher in front of them.
// What happens is taken in the order of virtual time over all of them: a result is told when the
// step that made it ends. `tasks[i]` that comes back from an instance (a slice) is sent again with
// prompt + output as its prompt; its times and tokens in the result are those of all its slices.
SimResult simulate_cluster(std::vector<SimInstance> instances,
                           std::unique_ptr<Dispatcher> dispatcher,
                           std::span<const SimClass> classes, std::span<const SimTask> tasks,
                           const SimOptions& options);

}  // namespace slicellm
