// Pace's choice of the step: which admitted rows decode, which prompts join them.
#include <algorithm>
#include <cmath>

#include "policy/pace.h"

namespace slicellm {
namespace {

constexpr int32_t kLeastChunk = 16;  // tokens of a prompt that is cut
constexpr double kPieceCost = 1.05;  // most that a piece of a prompt may cost a token, beside all
constexpr double kCutCost = 1.3;     // most that a cut piece may cost a token, beside a whole one
constexpr double kDelay = 0.3;       // most that a prompt in time may cost rows, by its utility

// Of the step so far with a chunk of `extra_tokens` on top of `past` tokens.
double duration(const StepBuilder& step, int32_t extra_tokens, int32_t past) {
  StepFeatures f = features_of(step.plan(), step.view());
  if (extra_tokens > 0) {
    f.tokens += extra_tokens;
    f.prefill_tokens += extra_tokens;
    f.rows += 1;
    f.chunk_work += extra_tokens * (past + 0.5 * extra_tokens);
  }
  return step.view().latency->predict(f).median;
}

bool moves_kv(int32_t slot, const StepBuilder& step) {
  const auto& kv = step.plan().kv;
  return std::any_of(kv.begin(), kv.end(), [&](const KvAction& a) { return a.slot == slot; });
}

}  // namespace

// Expected utility lost by admitted rows worth at least `value` that get their next token late when
// the first step takes `first` seconds and the later ones hold `batch` of them each, most urgent
// first: rows worth less give way.
double Pace::late_cost(double first, int32_t batch, double value) const {
  double end = now_ + first, cost = 0;
  int32_t ahead = 0;
  for (const Row& row : rows_) {
    if (row.value < value) continue;
    if (ahead > 0 && ahead % batch == 0) end += curve_.step(batch);
    if (row.due < end) cost += (end - row.due) * row.late;
    ++ahead;
  }
  return cost;
}

// Brings `slot`'s KV to the device, with room for `tokens` more.
bool Pace::make_room(int32_t slot, int32_t tokens, StepBuilder& step) const {
  const View& view = step.view();
  const bool on_host = view.tasks[slot].kv == KvState::host;
  const int32_t need = step.growth(slot, tokens) + (on_host ? view.tasks[slot].blocks : 0);
  for (const std::vector<int32_t>* list : {&hopeless_, &lost_, &started_}) {
    for (auto it = list->rbegin(); it != list->rend() && step.free_blocks() < need; ++it) {
      const TaskView& holder = view.tasks[*it];
      if (*it == slot || jobs_[*it].admitted == plans_ || holder.kv != KvState::device) continue;
      if (moves_kv(*it, step)) continue;
      const auto& decode = step.plan().decode;
      if (std::find(decode.begin(), decode.end(), *it) != decode.end()) continue;
      step.evict(*it);
    }
  }
  return step.free_blocks() >= need && (!on_host || step.swap_in(slot));
}

// Rows that may decode; one is left for a prompt.
int32_t Pace::most_rows() const {
  const int32_t most = std::max(1, curve_.max_rows() - (prompts_.empty() ? 0 : 1));
  return std::min(static_cast<int32_t>(rows_.size()), most);
}

// How many of rows_, the most urgent first, this step must hold, because the next one or the first
// prompt may delay them too much: the most efficient batch that keeps every due time; if none does,
// that of the rows worth much more than the least; if they are all alike, the most efficient.
int32_t Pace::choose_batch(const StepBuilder& step) {
  double prompt = 0;
  if (!prompts_.empty()) {
    const int32_t slot = prompts_.front().slot;
    prompt = duration(step, piece(slot, step), step.view().tasks[slot].cached);
  }
  aside_.clear();
  least_kept_ = 0;
  int32_t batch = 0;
  do {
    const int32_t ready = most_rows();
    const auto late = [&](int32_t b) {
      return rows_[b].due < now_ + curve_.step(b + 1) + std::max(prompt, curve_.step(b + 1));
    };
    batch = 0;
    while (batch < ready && late(batch)) ++batch;
    if (prompts_.empty()) batch = ready;
    if (batch == 0) break;
    const int32_t most = curve_.best_rows(batch);
    batch = most;
    while (batch > 1 && !keeps_due(curve_.step(batch), batch)) batch = curve_.best_rows(batch - 1);
    if (keeps_due(curve_.step(batch), batch)) break;
    batch = most;
  } while (leave_out_least());
  rows_.insert(rows_.end(), aside_.begin(), aside_.end());
  return batch;
}

// No prompt joins: `batch` rows and others that cost no more now than they ever will, and do not
// make late what choose_batch kept.
int32_t Pace::run_ahead(int32_t batch) const {
  const double cheapest = curve_.per_token(curve_.max_rows());
  for (int32_t b = most_rows(); b > batch; --b) {
    const double cost = batch > 0 ? curve_.step(b) - curve_.step(batch) : 0;
    if (cost > (b - batch) * cheapest) continue;
    if (late_cost(curve_.step(b), b, least_kept_) == 0) return b;
  }
  return batch > 0 || rows_.empty() ? batch : curve_.best_rows(most_rows());
}

// Takes the rows worth least out of this step, if one with nothing but a deadline is worth much
// more, or one with a TPOT, which may catch up later, far more; false if there is none.
bool Pace::leave_out_least() {
  double least = rows_.front().value, gain = 0;
  for (const Row& row : rows_) {
    least = std::min(least, row.value);
    gain = std::max(gain, row.value / (std::isinf(row.late) ? kMuchMore : kFarMore));
  }
  if (gain <= least) return false;
  least_kept_ = kMuchMore * least;
  const auto rest = std::stable_partition(rows_.begin(), rows_.end(),
                                          [&](const Row& row) { return row.value > least_kept_; });
  aside_.insert(aside_.begin(), rest, rows_.end());
  rows_.erase(rest, rows_.end());
  return true;
}

// The fewest tokens of a prompt that cost little more a token than as many as the step takes: what
// comes in the meantime waits no longer than it must.
int32_t Pace::piece(int32_t slot, const StepBuilder& step) const {
  const TaskView& task = step.view().tasks[slot];
  int32_t tokens = step.whole_prefill(slot);
  if (!task.prefill_divisible || tokens <= 0) return tokens;
  const double each = kPieceCost * duration(step, tokens, task.cached) / tokens;
  while (tokens / 2 >= kLeastChunk &&
         duration(step, tokens / 2, task.cached) <= each * (tokens / 2)) {
    tokens /= 2;
  }
  return tokens;
}

// Tokens of `prompt` to prefill beside `batch` rows: a piece, a part of it, or 0 if it must wait.
// Rows worth far less do not hold it up.
int32_t Pace::prompt_tokens(const Row& prompt, int32_t batch, const StepBuilder& step) const {
  const TaskView& task = step.view().tasks[prompt.slot];
  const int32_t whole = piece(prompt.slot, step);
  if (whole <= 0 || rows_.empty()) return whole;
  if (batch == 0) {  // choose_batch has found time for the first prompt only
    if (step.plan().prefill.empty()) return whole;
    batch = curve_.best_rows(most_rows());
  }
  const double least = prompt.value / kFarMore;
  const double next = curve_.step(batch);
  const double with = duration(step, whole, task.cached);
  if (late_cost(with, batch, least) == 0) return whole;
  // Not without delaying a row: only when it could be late itself, and comes before the rows, is
  // worth much more than those it delays, or loses more by waiting than they do.
  if (prompt.due < now_ + next + with) {
    const double rest = jobs_[prompt.slot].prompt + next;
    if (prompt.due < std::min(now_ + next, rows_.front().due) ||
        late_cost(with, batch, prompt.value / kMuchMore) == 0 ||
        late_cost(rest, batch) <= kDelay * task.utility) {
      return whole;
    }
  }
  if (!task.prefill_divisible) return 0;
  // The largest of a few chunks that keeps the due times, if it costs little more in all.
  const double without = duration(step, 0, 0);
  for (int32_t tokens = whole / 2; tokens >= kLeastChunk; tokens /= 2) {
    const double part = duration(step, tokens, task.cached);
    if (late_cost(part, batch, least) > 0) continue;
    return (part - without) / tokens <= kCutCost * (with - without) / whole ? tokens : 0;
  }
  return 0;
}

// Adds a token of rows_[first .. last), where there is room.
void Pace::decode(int32_t first, int32_t last, StepBuilder& step) const {
  for (int32_t i = first; i < last; ++i) {
    if (make_room(rows_[i].slot, 1, step)) step.decode(rows_[i].slot);
  }
}

void Pace::choose_step(StepBuilder& step) {
  const int32_t batch = choose_batch(step);
  decode(0, batch, step);
  for (const Row& prompt : prompts_) {
    const int32_t tokens = prompt_tokens(prompt, batch, step);
    if (tokens <= 0) break;
    if (!make_room(prompt.slot, tokens, step) || !step.prefill(prompt.slot, tokens)) break;
    if (tokens < step.view().tasks[prompt.slot].pending()) break;  // nobody overtakes it
  }
  if (step.plan().prefill.empty()) decode(batch, run_ahead(batch), step);
  if (!step.plan().runs()) run_leftovers(step);
}

// Nothing admitted runs: what was given up, in efficient batches, then whoever waits.
void Pace::run_leftovers(StepBuilder& step) const {
  const View& view = step.view();
  const int32_t most = curve_.best_rows(curve_.max_rows());
  for (int32_t slot : lost_) {
    if (!view.tasks[slot].ready_to_decode() || step.rows_left() == 0) continue;
    if (static_cast<int32_t>(step.plan().decode.size()) >= most) break;
    run_one(slot, step);
  }
  if (step.plan().runs()) return;
  for (int32_t slot : lost_) {
    if (!view.tasks[slot].ready_to_decode() && run_one(slot, step)) return;
  }
  for (const std::set<Ranked>* tasks : {&given_up_, &waiting_}) {
    for (const Ranked& entry : *tasks) {
      if (run_one(entry.slot, step)) return;
    }
  }
  for (int32_t slot : started_) {
    if (run_one(slot, step)) return;
  }
  for (int32_t slot : hopeless_) {
    if (run_one(slot, step)) return;
  }
}

// Adds a token of `slot`, or its prefill, if there is room.
bool Pace::run_one(int32_t slot, StepBuilder& step) const {
  const bool ready = step.view().tasks[slot].ready_to_decode();
  const int32_t tokens = ready ? 1 : piece(slot, step);
  if (tokens <= 0 || moves_kv(slot, step) || !make_room(slot, tokens, step)) return false;
  return ready ? step.decode(slot) : step.prefill(slot, tokens);
}

}  // namespace slicellm
