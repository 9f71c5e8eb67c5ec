#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "slicellm/batch.h"
#include "slicellm/kv_cache.h"
#include "slicellm/task.h"

namespace slicellm {

// The executor's side of a task: how to sample, and (workload runs) when it really ends.
struct ExecutorTask {
  TaskId id = 0;
  Sampling sampling;
  std::vector<int32_t> prompt;     // for the repetition penalty and recompute-free sampling state
  int32_t true_output_tokens = 0;  // 0 = until the model ends
};

struct RowResult {
  TaskId task = 0;
  int32_t token = 0;
  bool ended = false;    // the true output length is reached
  bool invalid = false;  // the logits held NaN or infinity: there is no token
  float logprob = 0;     // natural log, of the model's own distribution (before repetition penalty
                         // and temperature); if asked for
  std::vector<std::pair<int32_t, float>> top_logprobs;  // best first; equal ones by id
};

struct StepResult {
  // In batch order, for each sequence with `sample` and a task: its next token, and after each of
  // its drafts that turned out right the one that follows. An executor may leave drafts unchecked.
  std::vector<RowResult> rows;
  double duration = 0;         // seconds the step took, with the KV copies that it waited for
  bool graph = false;          // started as a whole, from an earlier step's record (GPUs)
  bool copies_beside = false;  // the step did not wait for its KV copies
};

using Ticket = int64_t;

// Runs batches. Steps take effect in the order of their submission: each finds the KV blocks, host
// blocks too, as the step before leaves them. Tickets are waited for in that order. Knows nothing
// of SLOs or policies. Called by the engine thread; `submit` returns without waiting for the
// result, and at most two steps may be in flight. A task is removed when no step has a sequence of
// it.
class Executor {
 public:
  virtual ~Executor() = default;
  virtual std::string name() const = 0;  // "cpu", "cuda", "sim"
  virtual const KvLayout& kv_layout() const = 0;
  virtual int32_t num_blocks() const = 0;
  virtual int32_t num_host_blocks() const = 0;

  virtual void add_task(const ExecutorTask& task) = 0;
  virtual void remove_task(TaskId id) = 0;
  // Whether a sequence of the task may be `chained` to the step before, which has not been waited
  // for.
  virtual bool can_chain(TaskId) const { return false; }
  virtual Ticket submit(Batch batch) = 0;
  virtual StepResult wait(Ticket ticket) = 0;
};

class Model;

// Runs `model` with its own KV pools. On a CPU and on several devices it is lazy: `submit` only
// records a batch, `wait` computes it on the calling thread (and the device's threads). On a GPU
// `submit` starts the step and `wait` waits for it; tokens are drawn there, unless a task asks for
// logprobs or a repetition penalty. Throws Error(resource) when the pools do not fit.
std::shared_ptr<Executor> make_executor(std::shared_ptr<Model> model, int32_t device_blocks,
                                        int32_t host_blocks);

}  // namespace slicellm
