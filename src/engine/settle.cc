// The second half of a step: what it gives, first as it is predicted where the loop is overlapped,
// becomes tokens and endings, and is told to the policy and the latency model.
#include <algorithm>

#include "engine/loop.h"
#include "slicellm/error.h"

namespace slicellm {

// Tells the policy of a step that has only been submitted: the next one is planned from there.
void Loop::predict(Step& step) {
  step.predicted = true;
  step.outcome.duration = step.expected;
  for (const Row& row : step.rows) {
    advance(row);
    if (!row.sampled) continue;
    ++table_.state(row.slot).predicted;
    ++table_.view(row.slot).produced;
    step.outcome.token_slots.push_back(row.slot);
  }
  predict_times(step);
  commit(step);
  for (const Row& row : step.rows) {
    const TaskView& view = table_.view(row.slot);
    if (view.produced >= view.max_tokens) leave(row.slot, FinishReason::length, step.end);
  }
  for (const Leaving& task : step.leaving) leave(task.slot, task.reason, step.end);
}

void Loop::predict_times(Step& step) {
  step.end = step.outcome.start + step.expected;
  for (const Row& row : step.rows) {
    TaskView& view = table_.view(row.slot);
    if (!row.sampled || view.ended != FinishReason::none) continue;
    view.last_token_time = step.end;
    if (view.produced == 1) view.first_token_time = step.end;
  }
}

// The step before has ended.
void Loop::begin(Step& step, double start) {
  step.outcome.start = start;
  for (LogEvent& event : step.opening) recorder_.add(start, event.task, event.kind, event.value);
  if (step.predicted) predict_times(step);
}

// Waits for the oldest step in flight and takes in what it gave.
void Loop::settle() {
  Step& step = in_flight_.front();
  StepResult result;
  if (step.runs) result = wait_for(step);
  step.end = step.runs ? clock_->now() : step.outcome.start;
  step.outcome.duration = result.duration;
  for (const Leaving& task : step.leaving) --table_.state(task.slot).steps;
  settle_rows(step, result);
  if (step.runs) {
    StepFeatures timed = step.outcome.features;
    if (result.copies_beside) timed.swap_bytes = 0;
    latency_->observe(timed, result.duration);
    ++stats_.steps;
    stats_.decode_steps += step.is_decode;
    stats_.graph_steps += result.graph;
    stats_.busy_seconds += result.duration;
  }
  if (!step.predicted) commit(step);
  if (in_flight_.size() > 1) begin(in_flight_[1], step.end);
  for (Leaving& task : step.leaving) {
    if (!table_.state(task.slot).told) {
      finish(task.slot, task.reason, std::move(task.error), step.end);
    } else if (table_.state(task.slot).steps == 0) {
      clear(task.slot);
    }
  }
  if (step.runs) record(step);
  in_flight_.pop_front();
}

StepResult Loop::wait_for(Step& step) {
  const auto start = Watch::now();
  StepResult result = executor_->wait(step.ticket);
  executor_seconds_ += std::chrono::duration<double>(Watch::now() - start).count();
  clock_->advance_to(step.outcome.start + result.duration);  // a real clock is there already
  return result;
}

// The row's tokens are in KV, or will be before the next step.
void Loop::advance(const Row& row) {
  TaskState& task = table_.state(row.slot);
  TaskView& view = table_.view(row.slot);
  view.cached += row.tokens;
  const std::span known(task.tokens);
  ledger_.note(task.kv, known.first(std::min(static_cast<size_t>(view.cached), known.size())));
}

void Loop::settle_rows(Step& step, StepResult& result) {
  auto wrong = [](const char* what) {
    throw Error(ErrorKind::state, "executor", what, "one row for each sampled sequence, in order");
  };
  size_t next = 0;
  for (const Row& row : step.rows) {
    TaskState& task = table_.state(row.slot);
    TaskView& view = table_.view(row.slot);
    --task.steps;
    if (!step.predicted) advance(row);
    if (row.prefill) stats_.prefill_tokens += row.tokens;
    std::span<RowResult> samples;
    if (row.sampled) {
      if (next == result.rows.size()) wrong("too few rows");
      const auto rest = std::span(result.rows).subspan(next);
      size_t count = 0;
      const size_t most = std::min(rest.size(), size_t{1} + static_cast<size_t>(row.drafts));
      while (count < most && rest[count].task == task.id) ++count;
      if (count == 0) wrong("a row of another task");
      samples = rest.first(count);
      next += count;
    }
    if (task.told) {  // it ended while this step was planned or ran
      if (task.steps == 0) clear(row.slot);
      continue;
    }
    if (row.prefill) recorder_.add(step.end, task.id, EventKind::prefill, row.tokens);
    if (samples.empty()) continue;
    const FinishReason reason = settle_samples(step, row, samples);
    if (view.ended == FinishReason::none) {
      view.produced = task.produced() + task.predicted;
      view.first_token_time = task.first_token_time;
      view.last_token_time = task.last_token_time;
    }
    if (reason == FinishReason::none) continue;
    step.leaving.push_back({row.slot, reason,
                            reason == FinishReason::error
                                ? "logits: got NaN or infinity, expected finite numbers"
                                : ""});
  }
  if (next != result.rows.size()) wrong("too many rows");
}

// Adds a row's tokens to its task up to the one that ends it; tells whether one does. Each but the
// first is what follows a draft that was right, whose K and V are therefore there.
FinishReason Loop::settle_samples(Step& step, const Row& row, std::span<RowResult> samples) {
  TaskState& task = table_.state(row.slot);
  const int32_t before = task.produced();
  FinishReason reason = FinishReason::none;
  for (size_t i = 0; i < samples.size() && reason == FinishReason::none; ++i) {
    reason = settle_token(task, samples[i], step.end);
  }
  const int32_t tokens = task.produced() - before;
  if (step.predicted) {
    --task.predicted;
  } else if (tokens > 0) {
    step.outcome.token_slots.push_back(row.slot);
    advance({row.slot, tokens - 1});
  }
  const int32_t right = static_cast<int32_t>(samples.size()) - 1;
  task.drafts.note(std::min(row.drafts, right + 1), right);
  stats_.drafted_tokens += row.drafts;
  stats_.accepted_tokens += std::max(0, tokens - 1);
  return reason;
}

// Adds the row's token to the task, unless it comes too late; tells whether the task ends with it.
FinishReason Loop::settle_token(TaskState& task, RowResult& row, double end) {
  if (row.invalid) return FinishReason::error;
  if (row.token < 0 || (options_.vocab > 0 && row.token >= options_.vocab)) {
    throw Error(ErrorKind::state, "executor", "token " + std::to_string(row.token),
                "a token of the vocabulary");
  }
  if (const auto ends_at = task.ends_at(); ends_at && end > *ends_at) return FinishReason::deadline;

  const TaskSpec& spec = task.spec;
  task.tokens.push_back(row.token);
  if (task.produced() == 1) task.first_token_time = end;
  task.last_token_time = end;
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
  } else if (task.produced() >= spec.max_tokens) {
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

void Loop::commit(const Step& step) {
  call_policy([&](Policy& policy) { policy.commit(step.plan, step.outcome, make_view(step.end)); });
}

void Loop::record(const Step& step) {
  const StepPlan& plan = step.plan;
  const Padding& padding = plan.padding;
  StepRecord record{
      .start = step.outcome.start,
      .duration = step.outcome.duration,
      .plan_seconds = policy_seconds_,
      .predicted = step.expected,
      .features = step.outcome.features,
      .decode_rows = static_cast<int32_t>(plan.decode.size()),
      .prefill_tokens = step.outcome.features.prefill_tokens - padding.prompt_tokens(),
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

}  // namespace slicellm
