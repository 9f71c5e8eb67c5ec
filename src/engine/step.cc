// The first half of a step: a checked plan becomes a batch that is submitted.
#include <algorithm>
#include <limits>

#include "engine/loop.h"
#include "slicellm/error.h"

namespace slicellm {

void Loop::submit(StepPlan plan, double now) {
  Step& step = in_flight_.emplace_back();
  const bool first = in_flight_.size() == 1;
  step.plan = std::move(plan);
  step.outcome.start = first ? now : std::max(now, in_flight_.front().end);
  step.outcome.features = features_of(step.plan, make_view(now));
  Batch batch = lower(step);
  step.runs = !batch.sequences.empty() || !batch.copies.empty();
  step.is_decode = !batch.sequences.empty() && is_decode_step(batch);
  step.expected = latency_->predict(step.outcome.features).median;
  if (step.runs) {
    const auto start = Watch::now();
    step.ticket = executor_->submit(std::move(batch));
    executor_seconds_ += std::chrono::duration<double>(Watch::now() - start).count();
  }
  if (first) begin(step, now);
  if (options_.loop == LoopKind::overlap) predict(step);
}

// Applies a plan to the ledger and the rows' KV. The rows themselves move on with the result.
Batch Loop::lower(Step& step) {
  Batch batch;
  move_kv(step, batch);
  const StepPlan& plan = step.plan;
  for (const Relegation& r : plan.relegated) {
    step.opening.push_back(
        {0, table_.state(r.slot).id, EventKind::relegate, static_cast<int32_t>(r.cause)});
  }
  for (const Ending& ending : plan.endings) {
    TaskState& task = table_.state(ending.slot);
    ledger_.release(task.kv);
    table_.sync_kv(ending.slot);
    step.leaving.push_back({ending.slot, ending.reason, ending.message});
    ++task.steps;
  }
  const Padding& padding = plan.padding;
  batch.sequences.reserve(plan.prefill.size() + plan.decode.size() + padding.rows.size() +
                          padding.prompts.size());
  for (const PrefillChunk& chunk : plan.prefill)
    add_row(step, chunk.slot, chunk.tokens, true, batch);
  std::optional<DraftBudget> budget = draft_budget(step);
  for (int32_t slot : plan.decode) {
    add_row(step, slot, 1, false, batch);
    if (budget) add_drafts(step.rows.back(), *budget, batch);
  }
  if (budget) step.outcome.features = budget->step();
  for (int32_t context : padding.rows) add_padding(context, 1, true, batch);
  for (int32_t pads : padding.prompts) add_padding(0, pads, false, batch);
  for (BlockTable& table : scratch_) ledger_.release(table);
  scratch_.clear();
  return batch;
}

void Loop::move_kv(Step& step, Batch& batch) {
  for (const KvAction& action : step.plan.kv) {
    TaskState& task = table_.state(action.slot);
    TaskView& view = table_.view(action.slot);
    switch (action.kind) {
      case KvActionKind::swap_out:
        step.opening.push_back({0, task.id, EventKind::swap_out, view.blocks});
        ledger_.swap_out(task.kv, batch.copies);
        task.interrupted = true;
        break;
      case KvActionKind::swap_in:
        step.opening.push_back({0, task.id, EventKind::swap_in, view.blocks});
        ledger_.swap_in(task.kv, batch.copies);
        break;
      case KvActionKind::drop:
        step.opening.push_back({0, task.id, EventKind::preempt, view.cached});
        ledger_.release(task.kv);
        view.cached = 0;
        task.interrupted = true;
        break;
    }
    table_.sync_kv(action.slot);
  }
}

// Takes what the prefix cache holds of a chunk; returns the tokens left to compute, at least one.
int32_t Loop::reuse_prefix(Step& step, int32_t slot, int32_t tokens) {
  TaskState& task = table_.state(slot);
  TaskView& view = table_.view(slot);
  const int32_t end = view.cached + tokens;
  const std::span known(task.tokens);
  const int32_t covered = ledger_.attach(
      task.kv, view.cached, known.first(std::min(static_cast<size_t>(end), known.size())));
  const int32_t reused = covered - view.cached;
  if (reused == 0) return tokens;
  StepFeatures& f = step.outcome.features;
  f.tokens -= reused;
  f.prefill_tokens -= reused;
  f.chunk_work -= 0.5 * reused * (double{1} * view.cached + covered);
  stats_.reused_tokens += reused;
  // What it computed itself before it was dropped does not count.
  if (view.produced == 0)
    task.handle->add_cached(std::max(0, covered - std::max(view.cached, task.reached)));
  view.cached = covered;
  return end - covered;
}

void Loop::add_row(Step& step, int32_t slot, int32_t tokens, bool prefill, Batch& batch) {
  TaskState& task = table_.state(slot);
  TaskView& view = table_.view(slot);
  if (!task.admitted) {
    ExecutorTask executor_task{
        .id = task.id,
        .sampling = task.spec.sampling,
        .prompt = {task.tokens.begin(), task.tokens.begin() + task.prompt_len},
        .true_output_tokens = task.spec.true_output_tokens};
    executor_->add_task(executor_task);
    task.admitted = true;
    step.opening.push_back({0, task.id, EventKind::admit});
  }
  if (task.interrupted) {
    task.interrupted = false;
    step.opening.push_back({0, task.id, EventKind::resume});
  }
  if (prefill) tokens = reuse_prefix(step, slot, tokens);
  task.reached = std::max(task.reached, view.cached + tokens);
  ledger_.grow(task.kv, int64_t{view.cached} + tokens);
  table_.sync_kv(slot);

  BatchSequence& sequence = batch.sequences.emplace_back();
  sequence.task = task.id;
  sequence.begin = static_cast<int32_t>(batch.tokens.size());
  sequence.count = tokens;
  sequence.past = view.cached;
  sequence.prompt_len = task.prompt_len;
  sequence.sample = tokens == view.pending();
  sequence.blocks = task.kv.blocks;
  const auto first = task.tokens.begin() + view.cached;
  sequence.chained = view.cached + tokens > static_cast<int32_t>(task.tokens.size());
  batch.tokens.insert(batch.tokens.end(), first, first + tokens - sequence.chained);
  if (sequence.chained) batch.tokens.push_back(0);
  step.can_chain &= !sequence.sample || executor_->can_chain(task.id);
  step.rows.push_back({slot, tokens, prefill, sequence.sample});
  ++task.steps;
}

std::optional<DraftBudget> Loop::draft_budget(const Step& step) {
  const std::vector<int32_t>& decode = step.plan.decode;
  if (options_.prompt_lookup == 0 || decode.empty() || !policy_->takes_drafts()) return {};
  double smallest_tpot = std::numeric_limits<double>::infinity();
  for (int32_t slot : decode) {
    smallest_tpot = std::min(smallest_tpot, table_.view(slot).slo.tpot.value_or(smallest_tpot));
  }
  return DraftBudget(*latency_, step.outcome.features, smallest_tpot);
}

// Guesses what follows the decode row that was added last, as far as its KV blocks reach: no
// account of blocks changes, whatever becomes of the drafts.
void Loop::add_drafts(Row& row, DraftBudget& budget, Batch& batch) {
  const TaskState& task = table_.state(row.slot);
  const TaskView& view = table_.view(row.slot);
  const int32_t most = std::min(
      {options_.prompt_lookup, view.blocks * ledger_.block_tokens() - (view.cached + 1),
       view.max_tokens - (view.produced + 1), options_.max_step_tokens - budget.step().tokens});
  look_up(task.tokens, most, drafts_);
  row.drafts =
      budget.take(view.cached, task.drafts.acceptance(), static_cast<int32_t>(drafts_.size()));
  BatchSequence& sequence = batch.sequences.back();
  sequence.drafts = row.drafts;
  sequence.count += row.drafts;
  batch.tokens.insert(batch.tokens.end(), drafts_.begin(), drafts_.begin() + row.drafts);
}

// A sequence of nobody, on blocks that are its own while the step runs: no task's KV is touched and
// no two threads of the executor meet in a block.
void Loop::add_padding(int32_t past, int32_t tokens, bool sample, Batch& batch) {
  BlockTable& table = scratch_.emplace_back();
  ledger_.grow(table, int64_t{past} + tokens);
  BatchSequence& sequence = batch.sequences.emplace_back();
  sequence.task = kNoTask;
  sequence.begin = static_cast<int32_t>(batch.tokens.size());
  sequence.count = tokens;
  sequence.past = past;
  sequence.prompt_len = past > 0 ? past : tokens;
  sequence.sample = sample;
  sequence.blocks = table.blocks;
  batch.tokens.insert(batch.tokens.end(), static_cast<size_t>(tokens), 0);
}

}  // namespace slicellm
