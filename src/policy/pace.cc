// pace: ours. Who is served is decided by value density under a demand test, who runs next by the
// time at which the next token is due.
//
//  * Value. A task is worth U times the Gittins index of its class's learned length distribution,
//    its prefill counted in tokens: expected utility per token of work.
//  * Admission. In order of value, a task is admitted if the work that is due by each of a row of
//    moments ahead, its own included, still fits in a share of the time until then, beside what
//    arrivals of more value are expected to need. The share is learned: an admitted task that
//    misses lowers it, one that makes it raises it.
//  * Relegation. What can no longer make it keeps its KV while there is room and runs only when
//    nothing else can.
//  * Steps. Among batch sizes the one with the least time a token that lets every admitted task
//    keep its due times, most urgent rows first. Prompts join when the rows' slack allows it, cut
//    where that is cheap, or when their own first token is the more urgent.
//
// Token k of a task with TPOT is due k * TPOT after its first token: it may end at any of them. A
// task with a deadline alone is due so that nine in ten of its class would make it.
#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <utility>

#include "policy/json.h"
#include "policy/length_belief.h"
#include "policy/pace_demand.h"
#include "policy/policies.h"
#include "policy/step_builder.h"

namespace slicellm {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr double kLead = 0.95;     // of a TPOT from due time to due time, so that a lead builds up
constexpr double kPace = 0.7;      // share of a deadline that tasks without TPOT aim to take
constexpr double kMuchMore = 1.5;  // times the value: worth leaving room, or delaying others, for
constexpr int kMisfits = 16;       // waiting tasks that may fail the demand test in one walk
// The share of time that a class's admitted work may fill rises with each admitted task that makes
// it and falls with each that misses: it rests where one in six misses.
constexpr double kFirstShare = 0.9, kLeastShare = 0.4, kMostShare = 1.3;
constexpr double kShareUp = 0.002, kShareDown = 0.01;
constexpr double kSmoothing = 0.02;  // weight of the last step in running means

// Whether a task that finished normally kept its targets.
bool made_it(const TaskView& task) {
  if (task.produced == 0) return true;
  const double first = task.first_token_time - task.arrival;
  const double last = task.last_token_time - task.arrival;
  if (task.slo.ttft && first > *task.slo.ttft) return false;
  if (task.slo.deadline && last > *task.slo.deadline) return false;
  return !task.slo.tpot || task.produced < 2 ||
         (last - first) / (task.produced - 1) <= *task.slo.tpot;
}

class Pace : public Policy {
 public:
  explicit Pace(const Parameters& p)
      : learns_(p.number("share", 0, 2) == 0), share_(p.number("share", 0, 2)) {}

  std::string name() const override { return "pace"; }
  void on(const TaskEvent& event, const View& view) override;
  StepPlan plan(const View& view) override;
  void commit(const StepPlan& plan, const StepOutcome& outcome, const View& view) override;
  std::string inspect() const override;

 private:
  // A class, apart by its cap on the output.
  struct Kind {
    explicit Kind(int32_t max_tokens) : lengths(max_tokens) {}
    LengthBelief lengths;
    double first_arrival = 0, arrivals = 0;  // since first_arrival; old ones fade
    double utility = 0, prompt_seconds = 0;  // means over arrivals
    Slo slo;                                 // of the last arrival
    double value = 0;                        // of a new task, mean over arrivals
    double share = kFirstShare;              // of the time that work up to this kind's may fill
  };
  enum class Place { none, waiting, started, lost };
  struct Job {
    Kind* kind = nullptr;
    Place place = Place::none;
    Ranked entry;         // in waiting_: rank = -value
    double prompt = 0;    // seconds of its first prefill
    double start_by = 0;  // latest start of its prefill
    uint64_t admitted = 0;
  };

  Kind& kind_of(const TaskView& task);
  double prefill_seconds(const TaskView& task, int32_t tokens, const View& view) const;
  double first_due(const TaskView& task, const Job& job) const;
  double token_due(const TaskView& task, const Job& job) const;
  bool is_lost(const TaskView& task, const Job& job, double now) const;
  double value(const TaskView& task, const Job& job) const;
  DemandGrid::Task demand(const TaskView& task, const Job& job, const DemandGrid& grid,
                          const View& view) const;
  DemandGrid::Task reserve(double value, const DemandGrid& grid, double now) const;
  void admit(const View& view);
  void relegate(int32_t slot);
  void judge(Kind& kind, bool made_it) const;

  void choose_step(StepBuilder& step);
  bool keeps_due(double first, double next, int32_t batch, double value = 0) const;
  bool place(int32_t slot, int32_t tokens, StepBuilder& step) const;
  double duration(const StepBuilder& step, int32_t extra_tokens, int32_t past) const;

  const bool learns_;
  const double share_;
  double token_seconds_ = 0;                           // running mean of decode time a token
  double usual_rows_ = 0;                              // running mean of decode rows a step
  std::map<std::pair<int32_t, int32_t>, Kind> kinds_;  // by class and cap
  std::vector<Job> jobs_;                              // by slot
  std::set<Ranked> waiting_;
  std::set<std::pair<double, int32_t>> latest_;  // start_by and slot of waiting tasks
  std::vector<int32_t> started_;                 // hold KV or have begun, and can still make it
  std::vector<int32_t> lost_;                    // by the time they were given up
  std::vector<int32_t> never_run_;
  double step_seconds_ = 0;  // running mean of steps

  // Scratch of a plan.
  StepCurve curve_;
  uint64_t plans_ = 0;
  struct Row {
    double due;
    int32_t slot;
    double value;
    bool operator<(const Row& o) const { return due != o.due ? due < o.due : slot < o.slot; }
  };
  std::vector<Row> rows_, prompts_;  // admitted: ready to decode; to be prefilled
  double now_ = 0;
};

Pace::Kind& Pace::kind_of(const TaskView& task) {
  return kinds_.try_emplace({task.class_id, task.max_tokens}, task.max_tokens).first->second;
}

// What a chunk adds to a step of the usual number of rows.
double Pace::prefill_seconds(const TaskView& task, int32_t tokens, const View& view) const {
  StepFeatures step = {.tokens = static_cast<int32_t>(usual_rows_),
                       .rows = static_cast<int32_t>(usual_rows_)};
  const double without = step.tokens > 0 ? view.latency->predict(step).median : 0;
  step.tokens += tokens;
  step.rows += 1;
  step.chunk_work = tokens * (task.cached + 0.5 * tokens);
  step.prefill_tokens = tokens;
  return view.latency->predict(step).median - without;
}

// When the first token is due.
double Pace::first_due(const TaskView& task, const Job& job) const {
  double due = kNever;
  if (task.slo.ttft) due = task.arrival + *task.slo.ttft;
  if (task.slo.deadline) {
    const double tokens = job.kind->lengths.high_remaining(0);
    due = std::min(due, task.arrival + kPace * *task.slo.deadline / tokens);
  }
  return due;
}

// When the next token of a started task is due.
double Pace::token_due(const TaskView& task, const Job& job) const {
  if (task.produced == 0) return first_due(task, job);
  double due = kNever;
  if (task.slo.tpot) due = task.first_token_time + kLead * task.produced * *task.slo.tpot;
  if (task.slo.deadline) {
    const double share =
        (task.produced + 1) / (task.produced + job.kind->lengths.high_remaining(task.produced));
    due = std::min(due, task.arrival + kPace * *task.slo.deadline * share);
  }
  return due;
}

bool Pace::is_lost(const TaskView& task, const Job& job, double now) const {
  const double fast = curve_.max_rows() > 0 ? curve_.step(1) : 0;
  const LengthBelief& lengths = job.kind->lengths;
  if (task.produced == 0) {
    if (task.slo.ttft && now + job.prompt > task.arrival + *task.slo.ttft) return true;
    if (!task.slo.deadline) return false;
    const double rest = (lengths.low_remaining(0) - 1) * fast;
    return now + job.prompt + rest > task.arrival + *task.slo.deadline;
  }
  if (task.slo.ttft && task.first_token_time > task.arrival + *task.slo.ttft) return true;
  if (task.slo.deadline &&
      now + lengths.low_remaining(task.produced) * fast > task.arrival + *task.slo.deadline) {
    return true;
  }
  if (!task.slo.tpot) return false;
  // Behind by more than running alone to its end could make up for.
  const double behind = now - (task.first_token_time + (task.produced - 1) * *task.slo.tpot);
  const double rest = lengths.high_remaining(task.produced);
  return behind + rest * fast > rest * *task.slo.tpot;
}

double Pace::value(const TaskView& task, const Job& job) const {
  const double token = token_seconds_;
  if (task.produced > 0) return task.utility * job.kind->lengths.index(task.produced);
  return task.utility * job.kind->lengths.first_index(token > 0 ? job.prompt / token : 0);
}

void Pace::on(const TaskEvent& event, const View& view) {
  const int32_t slot = event.slot;
  const TaskView& task = view.tasks[slot];
  if (event.kind == TaskEventKind::finish) {
    if (std::erase(never_run_, slot) > 0) return;
    Job& job = jobs_[slot];
    if (job.place == Place::waiting) {
      waiting_.erase(job.entry);
      latest_.erase({job.start_by, slot});
    } else {
      std::erase(job.place == Place::started ? started_ : lost_, slot);
    }
    if (event.reason == FinishReason::stop || event.reason == FinishReason::length) {
      if (task.produced > 0) job.kind->lengths.observe_end(task.produced);
      if (job.place == Place::started) judge(*job.kind, made_it(task));
    }
    job = Job();
    return;
  }
  if (!never_runs(task, view).empty()) {
    never_run_.push_back(slot);
    return;
  }
  if (curve_.max_rows() == 0) {
    curve_ =
        StepCurve(*view.latency, std::min(view.max_rows, view.max_step_tokens), task.prompt_len);
    step_seconds_ = curve_.step(1);
    token_seconds_ = curve_.per_token(curve_.max_rows());
  }
  if (jobs_.size() <= static_cast<size_t>(slot)) jobs_.resize(slot + 1);
  Job& job = jobs_[slot];
  Kind& kind = kind_of(task);
  job.kind = &kind;
  job.place = Place::waiting;
  job.prompt = prefill_seconds(task, task.pending(), view);
  const double worth = value(task, job);
  job.entry = {-worth, task.arrival, task.id, slot};
  job.start_by = first_due(task, job) - job.prompt;
  waiting_.insert(job.entry);
  latest_.insert({job.start_by, slot});

  if (kind.arrivals == 0) kind.first_arrival = task.arrival;
  kind.slo = task.slo;
  kind.arrivals += 1;
  const double weight = 1 / std::min(kind.arrivals, 64.0);
  kind.utility += weight * (task.utility - kind.utility);
  kind.prompt_seconds += weight * (job.prompt - kind.prompt_seconds);
  kind.value += weight * (worth - kind.value);
  if (kind.arrivals >= 256) {  // fade
    kind.first_arrival += (task.arrival - kind.first_arrival) / 2;
    kind.arrivals /= 2;
  }
}

void Pace::judge(Kind& kind, bool made) const {
  if (!learns_) return;
  kind.share = std::clamp(kind.share + (made ? kShareUp : -kShareDown), kLeastShare, kMostShare);
}

DemandGrid::Task Pace::demand(const TaskView& task, const Job& job, const DemandGrid& grid,
                              const View& view) const {
  DemandGrid::Task work;
  const bool ready = task.ready_to_decode();
  const double prefill = ready ? 0
                         : task.cached == 0 && task.produced == 0
                             ? job.prompt
                             : prefill_seconds(task, task.pending(), view);
  const double first = task.produced > 0 ? view.now : first_due(task, job);
  const LengthBelief& lengths = job.kind->lengths;
  const double left =
      task.produced > 0 ? lengths.mean_remaining(task.produced) : lengths.mean_remaining(0) - 1;
  const double high =
      task.produced > 0 ? lengths.high_remaining(task.produced) : lengths.high_remaining(0) - 1;
  for (int g = 0; g < DemandGrid::kMoments; ++g) {
    const double t = grid.ahead[g];
    const double until_first = std::max(first - view.now, prefill);
    if (prefill > 0) work.other[g] = prefill * std::clamp(2 * t / until_first - 1, 0.0, 1.0);
    if (task.slo.tpot) {
      const double next = task.produced > 0
                              ? task.first_token_time + task.produced * *task.slo.tpot - view.now
                              : prefill + *task.slo.tpot;
      const double behind = std::max(0.0, -next);
      const double soon = std::min(1.0, t / std::max(0.5 * left * *task.slo.tpot, 1e-3));
      work.tokens[g] =
          std::clamp((t - std::max(next, 0.0) + behind * soon) / *task.slo.tpot + 1, 0.0, left);
    }
    if (task.slo.deadline) {
      const double until = std::max(task.arrival + *task.slo.deadline - view.now, 1e-3);
      const double due = std::clamp(2 * t / until - 1, 0.0, 1.0) * (0.5 * (left + high));
      work.tokens[g] = std::max(work.tokens[g], due);
      if (prefill > 0) work.other[g] = prefill * std::clamp(2 * t / until - 0.5, 0.0, 1.0);
    }
  }
  return work;
}

// Work due by each moment that tasks yet to come, of more value than `worth`, will need.
DemandGrid::Task Pace::reserve(double worth, const DemandGrid& grid, double now) const {
  DemandGrid::Task work;
  for (const auto& [key, kind] : kinds_) {
    if (kind.value <= kMuchMore * worth || kind.arrivals < 4) continue;
    const double rate = kind.arrivals / std::max(now - kind.first_arrival, 1e-3);
    const double length = kind.lengths.mean_remaining(0) - 1;
    for (int g = 0; g < DemandGrid::kMoments; ++g) {
      const double t = grid.ahead[g];
      if (kind.slo.deadline) {
        const double window = *kind.slo.deadline;
        work.other[g] += rate * std::max(0.0, t - window) * kind.prompt_seconds;
        work.tokens[g] += rate * std::max(0.0, t - window) * length;
        continue;
      }
      const double window = kind.slo.ttft.value_or(0);
      const double half = 0.5 * length * kind.slo.tpot.value_or(0);
      work.other[g] += rate * std::max(0.0, t - window) * kind.prompt_seconds;
      work.tokens[g] += rate * std::max(0.0, t - window - half) * length;
    }
  }
  return work;
}

void Pace::admit(const View& view) {
  rows_.clear();
  prompts_.clear();
  DemandGrid grid(2 * curve_.step(1));
  int64_t blocks = 0;

  std::vector<std::pair<double, int32_t>> begun;
  for (int32_t slot : started_) begun.push_back({-value(view.tasks[slot], jobs_[slot]), slot});
  std::sort(begun.begin(), begun.end());
  auto next = begun.begin();
  auto waiting = waiting_.begin();
  int misfits = 0;
  double worth = -1;
  DemandGrid::Task beside;
  while (next != begun.end() || (waiting != waiting_.end() && misfits < kMisfits)) {
    const bool waits = next == begun.end() || (waiting != waiting_.end() && misfits < kMisfits &&
                                               waiting->rank < next->first);
    const int32_t slot = waits ? waiting->slot : next->second;
    const double rank = waits ? waiting->rank : next->first;
    waits ? static_cast<void>(++waiting) : static_cast<void>(++next);
    const TaskView& task = view.tasks[slot];
    Job& job = jobs_[slot];
    if (is_lost(task, job, view.now)) continue;
    if (waits && worth != -rank) {
      worth = -rank;
      beside = reserve(worth, grid, view.now);
    }
    const DemandGrid::Task work = demand(task, job, grid, view);
    const double tokens =
        task.prompt_len + task.produced + job.kind->lengths.high_remaining(task.produced);
    const int64_t need =
        view.blocks_for(std::min<int64_t>(most_kv_tokens(task), static_cast<int64_t>(tokens)));
    const bool first = grid.tasks == 0;
    if (!first && (blocks + need > view.total_blocks ||
                   !grid.fits(work, curve_, waits ? beside : DemandGrid::Task(),
                              learns_ ? job.kind->share : share_))) {
      misfits += waits;
      continue;
    }
    grid.add(work);
    blocks += need;
    job.admitted = plans_;
    if (task.ready_to_decode()) {
      rows_.push_back({token_due(task, job), slot, -rank});
    } else {
      const double prefill = task.cached == 0 && task.produced == 0
                                 ? job.prompt
                                 : prefill_seconds(task, task.pending(), view);
      prompts_.push_back({token_due(task, job) - prefill - step_seconds_, slot, -rank});
    }
  }
  std::sort(rows_.begin(), rows_.end());
  std::sort(prompts_.begin(), prompts_.end());
}

// Do all admitted rows worth at least `value` get their next token in time when the first step
// takes `first` seconds, the later ones `next`, `batch` rows each, most urgent first?
bool Pace::keeps_due(double first, double next, int32_t batch, double value) const {
  double end = now_ + first;
  for (size_t i = 0; i < rows_.size(); ++i) {
    if (i > 0 && i % static_cast<size_t>(batch) == 0) end += next;
    if (rows_[i].due < end && rows_[i].value >= value) return false;
  }
  return true;
}

// Brings `slot`'s KV to the device, with room for `tokens` more.
bool Pace::place(int32_t slot, int32_t tokens, StepBuilder& step) const {
  const View& view = step.view();
  const bool on_host = view.tasks[slot].kv == KvState::host;
  const int32_t need = step.growth(slot, tokens) + (on_host ? view.tasks[slot].blocks : 0);
  for (const std::vector<int32_t>* list : {&lost_, &started_}) {
    for (auto it = list->rbegin(); it != list->rend() && step.free_blocks() < need; ++it) {
      const TaskView& holder = view.tasks[*it];
      if (*it == slot || jobs_[*it].admitted == plans_ || holder.kv != KvState::device) continue;
      const auto& kv = step.plan().kv;
      if (std::any_of(kv.begin(), kv.end(), [&](const KvAction& a) { return a.slot == *it; })) {
        continue;
      }
      const auto& decode = step.plan().decode;
      if (std::find(decode.begin(), decode.end(), *it) != decode.end()) continue;
      step.evict(*it);
    }
  }
  return step.free_blocks() >= need && (!on_host || step.swap_in(slot));
}

// Of the step so far with a chunk of `extra_tokens` on top of `past` tokens.
double Pace::duration(const StepBuilder& step, int32_t extra_tokens, int32_t past) const {
  StepFeatures f = features_of(step.plan(), step.view());
  if (extra_tokens > 0) {
    f.tokens += extra_tokens;
    f.prefill_tokens += extra_tokens;
    f.rows += 1;
    f.chunk_work += extra_tokens * (past + 0.5 * extra_tokens);
  }
  return step.view().latency->predict(f).median;
}

void Pace::choose_step(StepBuilder& step) {
  const View& view = step.view();
  // Rows that this step must hold, because the next one may come too late for them; while nothing
  // else wants the time, all.
  // A row is left for a prompt.
  const int32_t most_rows = std::max(1, curve_.max_rows() - (prompts_.empty() ? 0 : 1));
  const int32_t ready = std::min(static_cast<int32_t>(rows_.size()), most_rows);
  int32_t batch = 0;
  while (batch < ready && rows_[batch].due < now_ + 2 * curve_.step(batch + 1)) ++batch;
  if (prompts_.empty() || batch == 0) batch = ready;
  if (batch > 0) {
    // The most efficient batch that keeps every due time; if none does, the most efficient.
    const int32_t most = curve_.best_rows(batch);
    for (int32_t b = most;; b = curve_.best_rows(b - 1)) {
      if (keeps_due(curve_.step(b), curve_.step(b), b)) {
        batch = b;
        break;
      }
      if (b == 1) {
        batch = most;
        break;
      }
    }
  }
  // Others run ahead where they cost no more than they ever will.
  const double cheapest = curve_.per_token(curve_.max_rows());
  for (int32_t b = ready; batch > 0 && b > batch; --b) {
    if (curve_.step(b) - curve_.step(batch) <= (b - batch) * cheapest &&
        keeps_due(curve_.step(b), curve_.step(b), b)) {
      batch = b;
    }
  }
  for (int32_t i = 0; i < batch; ++i) {
    if (place(rows_[i].slot, 1, step)) step.decode(rows_[i].slot);
  }
  const double next = batch > 0 ? curve_.step(batch) : 0;
  for (const Row& prompt : prompts_) {
    const TaskView& task = view.tasks[prompt.slot];
    const int32_t whole = step.whole_prefill(prompt.slot);
    if (whole <= 0) break;
    const double with = duration(step, whole, task.cached);
    int32_t tokens = whole;
    if (batch > 0 && !keeps_due(with, next, batch)) {
      // Not without delaying a row: only if its own first token comes before theirs.
      const bool urgent = prompt.due < now_ + next + with &&
                          ((prompt.due < now_ + next && prompt.due < rows_.front().due) ||
                           keeps_due(with, next, batch, prompt.value / kMuchMore));
      if (!urgent) {
        if (!task.prefill_divisible) break;
        // The largest of a few chunks that keeps the due times and costs little more in all.
        const double alone = with - duration(step, 0, 0);
        tokens = 0;
        for (int32_t c = whole / 2; c >= 16; c /= 2) {
          const double part = duration(step, c, task.cached);
          if (!keeps_due(part, next, batch)) continue;
          const double cost = (part - duration(step, 0, 0)) / c;
          if (cost <= 1.3 * alone / whole) tokens = c;
          break;
        }
        if (tokens == 0) break;
      }
    }
    if (!place(prompt.slot, tokens, step) || !step.prefill(prompt.slot, tokens)) break;
  }
  if (step.plan().runs()) return;

  // Nothing admitted runs: what was given up, then whoever waits.
  for (int32_t slot : lost_) {
    const TaskView& task = view.tasks[slot];
    if (!task.ready_to_decode() || step.rows_left() == 0) continue;
    if (static_cast<int32_t>(step.plan().decode.size()) >= curve_.best_rows(curve_.max_rows()))
      break;
    if (place(slot, 1, step)) step.decode(slot);
  }
  if (step.plan().runs()) return;
  for (int32_t slot : lost_) {
    const int32_t tokens = step.whole_prefill(slot);
    if (!view.tasks[slot].ready_to_decode() && tokens > 0 && place(slot, tokens, step) &&
        step.prefill(slot, tokens)) {
      return;
    }
  }
  for (const Ranked& entry : waiting_) {
    const int32_t tokens = step.whole_prefill(entry.slot);
    if (tokens > 0 && place(entry.slot, tokens, step) && step.prefill(entry.slot, tokens)) return;
  }
  for (int32_t slot : started_) {
    const TaskView& task = view.tasks[slot];
    const int32_t tokens = task.ready_to_decode() ? 1 : step.whole_prefill(slot);
    if (tokens > 0 && place(slot, tokens, step) &&
        (task.ready_to_decode() ? step.decode(slot) : step.prefill(slot, tokens))) {
      return;
    }
  }
}

StepPlan Pace::plan(const View& view) {
  ++plans_;
  now_ = view.now;
  StepBuilder step(view, view.max_rows);
  for (int32_t slot : never_run_) step.reject(slot, never_runs(view.tasks[slot], view));
  if (view.live.size() == never_run_.size()) return step.take();
  admit(view);
  choose_step(step);
  return step.take();
}

void Pace::relegate(int32_t slot) {
  Job& job = jobs_[slot];
  if (job.place == Place::waiting) {
    waiting_.erase(job.entry);
    latest_.erase({job.start_by, slot});
  } else {
    std::erase(started_, slot);
    judge(*job.kind, false);
  }
  job.place = Place::lost;
  lost_.push_back(slot);
}

void Pace::commit(const StepPlan& plan, const StepOutcome& outcome, const View& view) {
  if (plan.prefill.empty() && !plan.decode.empty() && outcome.duration > 0) {
    const double token = outcome.duration / static_cast<double>(plan.decode.size());
    token_seconds_ += kSmoothing * (token - token_seconds_);
    usual_rows_ += kSmoothing * (static_cast<double>(plan.decode.size()) - usual_rows_);
  }
  if (outcome.duration > 0) {
    const int32_t busy = static_cast<int32_t>(rows_.size() + prompts_.size());
    step_seconds_ = std::max(curve_.step(curve_.best_rows(std::max(1, busy))),
                             step_seconds_ + 0.05 * (outcome.duration - step_seconds_));
  }
  for (const PrefillChunk& chunk : plan.prefill) {
    Job& job = jobs_[chunk.slot];
    if (job.place != Place::waiting) continue;
    waiting_.erase(job.entry);
    latest_.erase({job.start_by, chunk.slot});
    job.place = Place::started;
    started_.push_back(chunk.slot);
  }
  for (int32_t slot : outcome.token_slots) {
    jobs_[slot].kind->lengths.observe_token(view.tasks[slot].produced);
  }
  while (!latest_.empty()) {
    const int32_t slot = latest_.begin()->second;
    if (latest_.begin()->first > view.now) break;
    if (!is_lost(view.tasks[slot], jobs_[slot], view.now)) {
      // A cautious start_by has passed; look again when the last chance has.
      Job& job = jobs_[slot];
      latest_.erase(latest_.begin());
      job.start_by = view.now + step_seconds_;
      latest_.insert({job.start_by, slot});
      continue;
    }
    relegate(slot);
  }
  for (size_t i = started_.size(); i-- > 0;) {
    const int32_t slot = started_[i];
    if (is_lost(view.tasks[slot], jobs_[slot], view.now)) relegate(slot);
  }
  if (plans_ % 64 == 0 && !started_.empty()) {
    double context = 0;
    for (int32_t slot : started_) context += view.tasks[slot].cached;
    curve_ =
        StepCurve(*view.latency, curve_.max_rows(), context / static_cast<double>(started_.size()));
  }
}

std::string Pace::inspect() const {
  std::vector<int32_t> waiting;
  for (const Ranked& entry : waiting_) waiting.push_back(entry.slot);
  std::string kinds = "[";
  for (const auto& [key, kind] : kinds_) {
    if (kinds.size() > 1) kinds += ',';
    kinds += JsonObject()
                 .add("class", key.first)
                 .add("share", kind.share)
                 .add("mean_tokens", kind.lengths.mean_remaining(0))
                 .add("value", kind.value)
                 .text();
  }
  return JsonObject()
      .raw("kinds", kinds += ']')
      .add("started", started_)
      .add("waiting", waiting)
      .add("lost", lost_)
      .text();
}

}  // namespace

PolicyInfo pace_info() {
  return {"pace",
          "ours",
          "Admits by value density under a demand test, serves by due time, learns as it runs.",
          {{"share", "0", "share of the time that admitted work may fill; 0 = learned"}}};
}

std::unique_ptr<Policy> make_pace(const Parameters& parameters) {
  return std::make_unique<Pace>(parameters);
}

}  // namespace slicellm
