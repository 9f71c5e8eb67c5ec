#include "engine/loop.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "slicellm/error.h"

namespace slicellm {

LoopKind parse_loop(std::string_view text) {
  if (text == "plain") return LoopKind::plain;
  if (text == "overlap") return LoopKind::overlap;
  throw Error(ErrorKind::invalid_argument, "loop", '"' + std::string(text) + '"',
              "\"plain\" or \"overlap\"");
}

namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

std::string count(int64_t n, const char* what) { return std::to_string(n) + " " + what; }

}  // namespace

const char* to_string(EventKind kind) {
  switch (kind) {
    case EventKind::arrive:
      return "arrive";
    case EventKind::admit:
      return "admit";
    case EventKind::prefill:
      return "prefill";
    case EventKind::token:
      return "token";
    case EventKind::preempt:
      return "preempt";
    case EventKind::swap_out:
      return "swap_out";
    case EventKind::swap_in:
      return "swap_in";
    case EventKind::resume:
      return "resume";
    case EventKind::relegate:
      return "relegate";
    case EventKind::finish:
      return "finish";
    case EventKind::reject:
      return "reject";
  }
  return "";
}

Loop::Loop(std::shared_ptr<Executor> executor, std::unique_ptr<Policy> policy,
           std::unique_ptr<LatencyModel> latency, std::shared_ptr<Clock> clock,
           const EngineOptions& options)
    : executor_(std::move(executor)),
      policy_(std::move(policy)),
      latency_(std::move(latency)),
      clock_(std::move(clock)),
      options_(options),
      ledger_(executor_->num_blocks(), executor_->num_host_blocks(),
              executor_->kv_layout().block_tokens,
              options.prefix_cache && options.prefill_divisible),
      recorder_(options.record_events) {}

View Loop::make_view(double now) const {
  View view;
  view.now = in_flight_.empty() ? now : std::max(now, in_flight_.back().end);
  view.tasks = table_.views();
  view.live = table_.live();
  view.block_tokens = ledger_.block_tokens();
  view.total_blocks = ledger_.device().num_blocks();
  view.free_blocks = ledger_.device().num_free();
  view.total_host_blocks = ledger_.host().num_blocks();
  view.free_host_blocks = ledger_.host().num_free();
  view.block_bytes = executor_->kv_layout().block_bytes();
  view.max_rows = options_.max_rows;
  view.max_step_tokens = options_.max_step_tokens;
  view.latency = latency_.get();
  return view;
}

void Loop::enqueue(std::unique_ptr<TaskState> task) {
  scheduled_arrival_.emplace(task->id, task->arrival);
  const std::pair key(task->arrival, task->id);
  scheduled_.emplace(key, std::move(task));
}

std::string Loop::refusal(const TaskState& task) const {
  // The last token's K and V are never needed.
  const int64_t cached = int64_t{task.prompt_len} + task.spec.max_tokens - 1;
  const std::string length = "prompt + max_tokens: got " + count(cached + 1, "tokens, expected ");
  if (options_.max_context > 0 && cached + 1 > options_.max_context) {
    return length + "at most " + count(options_.max_context, "(max_context)");
  }
  if (ledger_.blocks_for(cached) > ledger_.device().num_blocks()) {
    return length + "at most what " + count(ledger_.device().num_blocks(), "KV blocks of ") +
           count(ledger_.block_tokens(), "tokens hold");
  }
  if (!options_.prefill_divisible && cached > options_.max_step_tokens) {
    return length + "at most " +
           count(options_.max_step_tokens, "(max_step_tokens) + 1, as this ") +
           "model takes a prompt in one step";
  }
  return "";
}

void Loop::take_in(double now) {
  while (!scheduled_.empty() && scheduled_.begin()->first.first <= now) {
    auto node = scheduled_.extract(scheduled_.begin());
    std::unique_ptr<TaskState> task = std::move(node.mapped());
    if (std::string why = refusal(*task); !why.empty()) {
      end_scheduled(std::move(task), FinishReason::rejected, std::move(why), now);
      continue;
    }
    scheduled_arrival_.erase(task->id);
    recorder_.add(task->arrival, task->id, EventKind::arrive);
    if (const auto ends_at = task->ends_at()) deadlines_.emplace(*ends_at, task->id);
    dirty_ = true;
    const int32_t slot = table_.insert(std::move(task), options_.prefill_divisible);
    call_policy([&](Policy& policy) { policy.on({TaskEventKind::arrive, slot}, make_view(now)); });
  }
  while (!deadlines_.empty() && deadlines_.top().first <= now) {
    const int32_t slot = table_.find(deadlines_.top().second);
    deadlines_.pop();
    if (slot >= 0) finish(slot, FinishReason::deadline, "", now);
  }
}

// Ends a task that the policy has not seen.
void Loop::end_scheduled(std::unique_ptr<TaskState> task, FinishReason reason, std::string error,
                         double now) {
  scheduled_arrival_.erase(task->id);
  recorder_.add(std::min(task->arrival, now), task->id, EventKind::arrive);
  recorder_.add(now, task->id,
                reason == FinishReason::rejected ? EventKind::reject : EventKind::finish,
                static_cast<int32_t>(reason));
  ended_.push_back({task->handle, reason, std::move(error), now});
  ++stats_.finished;
}

// The task is the policy's no more; its row tells what has become of it, or is about to.
void Loop::leave(int32_t slot, FinishReason reason, double now) {
  TaskState& task = table_.state(slot);
  if (task.steps > 0) task.released = task.kv;
  ledger_.release(task.kv);
  table_.sync_kv(slot);
  table_.retire(slot);
  table_.view(slot).ended = reason;
  call_policy([&](Policy& policy) { policy.on({TaskEventKind::finish, slot}, make_view(now)); });
}

// Ends a task for its caller, and for the policy if it has not left.
void Loop::finish(int32_t slot, FinishReason reason, std::string error, double now) {
  TaskState& task = table_.state(slot);
  TaskView& view = table_.view(slot);
  std::string rest;
  task.text.finish(rest);
  task.handle->add_text(rest);
  recorder_.add(now, task.id,
                reason == FinishReason::rejected ? EventKind::reject : EventKind::finish,
                static_cast<int32_t>(reason));
  ended_.push_back({task.handle, reason, std::move(error), now});
  task.told = true;
  ++stats_.finished;
  if (reason == FinishReason::error) {  // its KV may hold NaN
    ledger_.forget(task.kv);
    ledger_.forget(task.released);
  }
  if (view.ended == FinishReason::none) {
    view.produced = task.produced();
    view.first_token_time = task.first_token_time;
    view.last_token_time = task.last_token_time;
    leave(slot, reason, now);
  }
  if (task.steps == 0) clear(slot);
}

// Frees the slot of a task that has ended for everyone and takes part in no step.
void Loop::clear(int32_t slot) {
  const TaskState& task = table_.state(slot);
  if (task.admitted) executor_->remove_task(task.id);
  table_.clear(slot);
}

void Loop::cancel(TaskId id) {
  const double now = clock_->now();
  if (const int32_t slot = table_.find(id); slot >= 0) {
    finish(slot, FinishReason::cancelled, "", now);
    return;
  }
  const auto arrival = scheduled_arrival_.find(id);
  if (arrival == scheduled_arrival_.end()) return;
  auto node = scheduled_.extract({arrival->second, id});
  end_scheduled(std::move(node.mapped()), FinishReason::cancelled, "", now);
}

void Loop::cancel_all() {
  while (!table_.live().empty()) {
    finish(table_.live().back(), FinishReason::cancelled, "", clock_->now());
  }
  while (!scheduled_.empty()) cancel(scheduled_.begin()->first.second);
  while (!in_flight_.empty()) settle();
}

void Loop::fail(const std::string& sentence) noexcept {
  const double now = clock_->now();
  auto end = [&](int32_t slot) {
    if (table_.view(slot).id < 0) return;  // cleared
    TaskState& task = table_.state(slot);
    if (std::exchange(task.told, true)) return;
    try {
      std::string rest;
      task.text.finish(rest);
      task.handle->add_text(rest);
      ledger_.release(task.kv);
      if (task.admitted) executor_->remove_task(task.id);
    } catch (...) {  // the first error is the one to tell
    }
    recorder_.add(now, task.id, EventKind::finish, static_cast<int32_t>(FinishReason::error));
    ended_.push_back({task.handle, FinishReason::error, sentence, now});
    ++stats_.finished;
  };
  for (int32_t slot : table_.live()) end(slot);
  for (const Step& step : in_flight_) {  // who has left but not ended
    for (const Row& row : step.rows) end(row.slot);
    for (const Leaving& task : step.leaving) end(task.slot);
  }
  in_flight_.clear();
  table_ = TaskTable();
  while (!scheduled_.empty()) {
    auto node = scheduled_.extract(scheduled_.begin());
    end_scheduled(std::move(node.mapped()), FinishReason::error, sentence, now);
  }
}

double Loop::next_time() {
  while (!deadlines_.empty() && table_.find(deadlines_.top().second) < 0) deadlines_.pop();
  const double arrival = scheduled_.empty() ? kNever : scheduled_.begin()->first.first;
  const double deadline = deadlines_.empty() ? kNever : deadlines_.top().first;
  return std::min(arrival, deadline);
}

// Tells the rows how many of their blocks others hold too.
void Loop::count_shared_blocks() {
  const bool shares = ledger_.device().num_shared() > 0;
  if (!shares && !shares_) return;
  for (int32_t slot : table_.live()) {
    table_.view(slot).shared = ledger_.shared(table_.state(slot).kv);
  }
  shares_ = shares;
}

double Loop::iterate() {
  const double now = clock_->now();
  take_in(now);
  double wake = now;
  const bool submitted = submit_next(now, &wake);
  // The step that was submitted runs on while the next one is planned, if that one can be lowered
  // without its tokens.
  const bool ahead = submitted && options_.loop == LoopKind::overlap && in_flight_.back().can_chain;
  while (in_flight_.size() > (ahead ? 1 : 0)) settle();
  return wake;
}

// Plans and submits a step if there is something to run. Otherwise, if nothing runs, `wake` becomes
// the time to come back.
bool Loop::submit_next(double now, double* wake) {
  const bool idle = in_flight_.empty();
  if (table_.live().empty()) {
    if (!idle) return false;
    if (std::exchange(dirty_, false)) check_integrity();
    *wake = next_time();
    return false;
  }
  count_shared_blocks();
  const View view = make_view(now);
  StepPlan plan;
  call_policy([&](Policy& policy) { plan = policy.plan(view); });
  // What runs nothing can wait until it is certain.
  if (!idle && !plan.runs()) return false;
  checker_.check(plan, view);
  if (plan.empty()) {
    *wake = std::min(plan.wake_at, next_time());
    return false;
  }
  submit(std::move(plan), now);
  return true;
}

EngineStats Loop::stats() const {
  EngineStats stats = stats_;
  stats.live = static_cast<int32_t>(table_.live().size());
  stats.free_blocks = ledger_.device().num_free();
  stats.total_blocks = ledger_.device().num_blocks();
  stats.free_host_blocks = ledger_.host().num_free();
  stats.total_host_blocks = ledger_.host().num_blocks();
  return stats;
}

void Loop::check_integrity() const {
  ledger_.check_integrity();
  if (table_.live().empty()) ledger_.check_all_free();
}

}  // namespace slicellm
