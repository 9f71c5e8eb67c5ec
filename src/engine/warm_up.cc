#include "engine/warm_up.h"

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace slicellm {
namespace {

// A sequence of a step, on blocks of its own.
struct Row {
  int32_t count = 0, past = 0;
};
using Rows = std::vector<Row>;

int32_t blocks_for(int32_t tokens, int32_t slots) { return (tokens + slots - 1) / slots; }

// As many tokens as a step may have, in sequences as long as they may be.
Rows largest_prefill(const Executor& executor, const EngineOptions& options) {
  const int32_t slots = executor.kv_layout().block_tokens;
  int32_t tokens = options.max_step_tokens, blocks = executor.num_blocks();
  Rows rows;
  while (tokens > 0 && blocks > 0 && rows.size() < static_cast<size_t>(options.max_rows)) {
    const auto room = static_cast<int32_t>(std::min(int64_t{blocks} * slots, int64_t{tokens}));
    rows.push_back({.count = std::min(room, options.max_context)});
    tokens -= rows.back().count;
    blocks -= blocks_for(rows.back().count, slots);
  }
  return rows;
}

// `n` decode rows with contexts as long as they may be and find room together.
Rows longest_decode(const Executor& executor, const EngineOptions& options, int32_t n) {
  const int64_t room = int64_t{executor.num_blocks() / n} * executor.kv_layout().block_tokens;
  const auto context = static_cast<int32_t>(std::min(room, int64_t{options.max_context}));
  return Rows(static_cast<size_t>(n), {.count = 1, .past = context - 1});
}

Batch make_batch(const Rows& rows, int32_t slots) {
  Batch batch;
  int32_t next_block = 0;
  for (const Row& row : rows) {
    BatchSequence s;
    s.task = static_cast<TaskId>(batch.sequences.size());
    s.begin = static_cast<int32_t>(batch.tokens.size());
    s.count = row.count;
    s.past = row.past;
    s.prompt_len = std::max(row.past, row.count);
    s.sample = true;
    for (int32_t i = blocks_for(row.past + row.count, slots); i > 0; --i) {
      s.blocks.push_back(next_block++);
    }
    batch.tokens.resize(batch.tokens.size() + static_cast<size_t>(row.count));
    batch.sequences.push_back(std::move(s));
  }
  return batch;
}

}  // namespace

void warm_up(Executor& executor, const EngineOptions& options, const Progress& progress) {
  const int32_t most = std::min(options.max_rows, executor.num_blocks());
  std::vector<Rows> steps = {largest_prefill(executor, options)};
  for (int32_t n = 1; n < most; n *= 2) steps.push_back(longest_decode(executor, options, n));
  steps.insert(steps.end(), 2, longest_decode(executor, options, most));  // two may be in flight
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
