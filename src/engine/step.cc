// The second half of the loop: a checked plan becomes a batch, the batch a result, the result
// tokens.
#include <algorithm>

#include "engine/loop.h"
#include "slicellm/error.h"

namespace slicellm {

void Loop::run(const StepPlan& plan, double now) {
  const View before = make_view(now);
  outcome_.start = now;
  outcome_.duration = 0;
  outcome_.features = features_of(plan, before);
  outcome_.token_slots.clear();
  rows_.clear();
  leaving_.clear();

  Batch batch;
  move_kv(plan.kv, now, batch);
  for (const Relegation& r : plan.relegated) {
    recorder_.add(now, table_.state(r.slot).id, EventKind::relegate, static_cast<int32_t>(r.cause));
  }
  for (const Ending& ending : plan.endings) {
    ledger_.release(table_.state(ending.slot).kv);
    table_.sync_kv(ending.slot);
    leaving_.push_back({ending.slot, ending.reason, ending.message});
  }
  const Padding& padding = plan.padding;
  batch.sequences.reserve(plan.prefill.size() + plan.decode.size() + padding.rows.size() +
                          padding.prompts.size());
  for (const PrefillChunk& chunk : plan.prefill)
    add_row(chunk.slot, chunk.tokens, true, now, batch);
  for (int32_t slot : plan.decode) add_row(slot, 1, false, now, batch);
  for (int32_t context : padding.rows) add_padding(context, 1, true, batch);
  for (int32_t pads : padding.prompts) add_padding(0, pads, false, batch);

  const double predicted = latency_->predict(outcome_.features).median;
  double end = now;
  const bool runs = !batch.sequences.empty() || !batch.copies.empty();
  if (runs) {
    StepResult result = execute(std::move(batch), now);
    end = clock_->now();
    for (BlockTable& table : scratch_) ledger_.release(table);
    scratch_.clear();
    outcome_.duration = result.duration;
    commit_rows(result, end);
    latency_->observe(outcome_.features, result.duration);
    ++stats_.steps;
    stats_.busy_seconds += result.duration;
  }
  call_policy([&](Policy& policy) { policy.commit(plan, outcome_, make_view(end)); });
  for (Leaving& task : leaving_) finish(task.slot, task.reason, std::move(task.error), end);

  if (!runs) return;
  StepRecord record{.start = now,
                    .duration = outcome_.duration,
                    .plan_seconds = policy_seconds_,
                    .predicted = predicted,
                    .features = outcome_.features,
                    .decode_rows = static_cast<int32_t>(plan.decode.size()),
                    .prefill_tokens = outcome_.features.prefill_tokens - padding.prompt_tokens(),
                    .prefill_rows = static_cast<int32_t>(plan.prefill.size()),
                    .padding_rows = static_cast<int32_t>(padding.rows.size()),
                    .padding_tokens = padding.prompt_tokens()};
  const auto mark = Watch::now();
  const double total = std::chrono::duration<double>(mark - mark_).count();
  record.overhead_seconds = total - policy_seconds_ - executor_seconds_;
  mark_ = mark;
  policy_seconds_ = executor_seconds_ = 0;
  recorder_.add(record);
}

void Loop::move_kv(const std::vector<KvAction>& actions, double now, Batch& batch) {
  for (const KvAction& action : actions) {
    TaskState& task = table_.state(action.slot);
    TaskView& view = table_.view(action.slot);
    switch (action.kind) {
      case KvActionKind::swap_out:
        recorder_.add(now, task.id, EventKind::swap_out, view.blocks);
        ledger_.swap_out(task.kv, batch.copies);
        task.interrupted = true;
        break;
      case KvActionKind::swap_in:
        recorder_.add(now, task.id, EventKind::swap_in, view.blocks);
        ledger_.swap_in(task.kv, batch.copies);
        break;
      case KvActionKind::drop:
        recorder_.add(now, task.id, EventKind::preempt, view.cached);
        ledger_.release(task.kv);
        view.cached = 0;
        task.interrupted = true;
        break;
    }
    table_.sync_kv(action.slot);
  }
}

// Takes what the prefix cache holds of a chunk; returns the tokens left to compute, at least one.
int32_t Loop::reuse_prefix(int32_t slot, int32_t tokens) {
  TaskState& task = table_.state(slot);
  TaskView& view = table_.view(slot);
  const int32_t end = view.cached + tokens;
  const std::span all(task.tokens);
  const int32_t covered = ledger_.attach(task.kv, view.cached, all.first(static_cast<size_t>(end)));
  const int32_t reused = covered - view.cached;
  if (reused == 0) return tokens;
  StepFeatures& f = outcome_.features;
  f.tokens -= reused;
  f.prefill_tokens -= reused;
  f.chunk_work -= 0.5 * reused * (double{1} * view.cached + covered);
  stats_.reused_tokens += reused;
  if (view.produced == 0) task.handle->add_cached(reused);
  view.cached = covered;
  return end - covered;
}

void Loop::add_row(int32_t slot, int32_t tokens, bool prefill, double now, Batch& batch) {
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
    recorder_.add(now, task.id, EventKind::admit);
  }
  if (task.interrupted) {
    task.interrupted = false;
    recorder_.add(now, task.id, EventKind::resume);
  }
  if (prefill) tokens = reuse_prefix(slot, tokens);
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
  batch.tokens.insert(batch.tokens.end(), first, first + tokens);
  rows_.push_back({slot, tokens, prefill});
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

StepResult Loop::execute(Batch batch, double now) {
  const auto start = Watch::now();
  const Ticket ticket = executor_->submit(std::move(batch));
  StepResult result = executor_->wait(ticket);
  executor_seconds_ += std::chrono::duration<double>(Watch::now() - start).count();
  clock_->advance_to(now + result.duration);  // a real clock is there already
  return result;
}

void Loop::commit_rows(StepResult& result, double end) {
  auto wrong = [](const char* what) {
    throw Error(ErrorKind::state, "executor", what, "one row for each sampled sequence, in order");
  };
  size_t next = 0;
  for (const Row& row : rows_) {
    TaskState& task = table_.state(row.slot);
    TaskView& view = table_.view(row.slot);
    const bool sampled = row.tokens == view.pending();
    view.cached += row.tokens;
    ledger_.note(task.kv, std::span(task.tokens).first(static_cast<size_t>(view.cached)));
    if (row.prefill) stats_.prefill_tokens += row.tokens;
    if (row.prefill) recorder_.add(end, task.id, EventKind::prefill, row.tokens);
    if (!sampled) continue;
    if (next == result.rows.size()) wrong("too few rows");
    RowResult& sample = result.rows[next++];
    if (sample.task != task.id) wrong("a row of another task");
    const FinishReason reason = commit_token(task, sample, end);
    const bool has_token =
        static_cast<int32_t>(task.tokens.size()) > task.prompt_len + view.produced;
    if (has_token) {
      if (++view.produced == 1) view.first_token_time = end;
      view.last_token_time = end;
      outcome_.token_slots.push_back(row.slot);
    }
    if (reason != FinishReason::none) {
      leaving_.push_back({row.slot, reason,
                          reason == FinishReason::error
                              ? "logits: got NaN or infinity, expected finite numbers"
                              : ""});
    }
  }
  if (next != result.rows.size()) wrong("too many rows");
}

// Adds the row's token to the task, unless it comes too late; tells whether the task ends with it.
FinishReason Loop::commit_token(TaskState& task, RowResult& row, double end) {
  if (row.invalid) return FinishReason::error;
  if (row.token < 0 || (options_.vocab > 0 && row.token >= options_.vocab)) {
    throw Error(ErrorKind::state, "executor", "token " + std::to_string(row.token),
                "a token of the vocabulary");
  }
  if (const auto ends_at = task.ends_at(); ends_at && end > *ends_at) return FinishReason::deadline;

  const TaskSpec& spec = task.spec;
  task.tokens.push_back(row.token);
  const int32_t produced = static_cast<int32_t>(task.tokens.size()) - task.prompt_len;
  recorder_.add(end, task.id, EventKind::token, row.token);

  auto is_one_of = [&row](const std::vector<int32_t>& ids) {
    return std::find(ids.begin(), ids.end(), row.token) != ids.end();
  };
  // A workload's task ends where its recorded output does, not where the model would stop.
  const bool heeds_eos = !spec.ignore_eos && spec.true_output_tokens == 0;
  FinishReason reason = FinishReason::none;
  std::string text;
  if (is_one_of(spec.stop_ids) || (heeds_eos && is_one_of(options_.eos_ids))) {
    reason = FinishReason::stop;
  } else if (task.text.add(row.token, text) || row.ended) {
    reason = FinishReason::stop;
  } else if (produced >= spec.max_tokens) {
    reason = FinishReason::length;
  }
  Token token;
  token.id = row.token;
  token.time = end;
  token.logprob = row.logprob;
  token.top_logprobs = std::move(row.top_logprobs);
  task.handle->add(std::move(token), text);
  return reason;
}

}  // namespace slicellm
