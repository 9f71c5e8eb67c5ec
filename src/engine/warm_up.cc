#include "engine/warm_up.h"

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace slicellm {
namespace {

using Counts = std::vector<int32_t>;  // tokens of each sequence of a step

// As many tokens as a step may have, in sequences as long as they may be.
Counts largest_prefill(const Executor& executor, const EngineOptions& options) {
  const int32_t slots = executor.kv_layout().block_tokens;
  int32_t tokens = options.max_step_tokens, blocks = executor.num_blocks();
  Counts counts;
  while (tokens > 0 && blocks > 0 && counts.size() < static_cast<size_t>(options.max_rows)) {
    const int32_t room = static_cast<int32_t>(std::min(int64_t{blocks} * slots, int64_t{tokens}));
    counts.push_back(std::min(room, options.max_context));
    tokens -= counts.back();
    blocks -= (counts.back() + slots - 1) / slots;
  }
  return counts;
}

Batch make_batch(const Counts& counts, int32_t slots) {
  Batch batch;
  int32_t next_block = 0;
  for (const int32_t count : counts) {
    BatchSequence s;
    s.task = static_cast<TaskId>(batch.sequences.size());
    s.begin = static_cast<int32_t>(batch.tokens.size());
    s.count = s.prompt_len = count;
    s.sample = true;
    for (int32_t i = 0; i < (count + slots - 1) / slots; ++i) s.blocks.push_back(next_block++);
    batch.tokens.resize(batch.tokens.size() + static_cast<size_t>(count));
    batch.sequences.push_back(std::move(s));
  }
  return batch;
}

}  // namespace

void warm_up(Executor& executor, const EngineOptions& options, const Progress& progress) {
  const int32_t rows = std::min(options.max_rows, executor.num_blocks());
  std::vector<Counts> steps = {largest_prefill(executor, options)};
  for (int32_t n = 1; n < rows; n *= 2) steps.emplace_back(n, 1);
  steps.insert(steps.end(), 2, Counts(static_cast<size_t>(rows), 1));  // two may be in flight
  for (TaskId id = 0; id < options.max_rows; ++id) {
    ExecutorTask task;
    task.id = id;
    task.sampling.temperature = id % 2 == 0 ? 0 : 1;  // both ways of drawing
    executor.add_task(task);
  }
  for (size_t i = 0; i < steps.size(); ++i) {
    if (progress) progress(i, steps.size());
    executor.wait(executor.submit(make_batch(steps[i], executor.kv_layout().block_tokens)));
  }
  for (TaskId id = 0; id < options.max_rows; ++id) executor.remove_task(id);
  if (progress) progress(steps.size(), steps.size());
}

}  // namespace slicellm
