// Pace's values, learning, events and admission.
#include "policy/pace.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "policy/json.h"
#include "policy/policies.h"

namespace slicellm {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr double kLead = 0.95;  // of a TPOT from due time to due time, so that a lead builds up
constexpr double kPace = 0.6;   // share of a deadline that tasks without TPOT aim to take
constexpr int kMisfits = 16;    // waiting tasks that may fail the demand test in one walk
constexpr double kSmoothing = 0.02;  // weight of the last step in running means

}  // namespace

Pace::Kind& Pace::kind_of(const TaskView& task) {
  return kinds_.try_emplace({task.class_id, task.max_tokens}, task.max_tokens).first->second;
}

// What prefilling all that is pending adds to a step of the usual number of rows.
double Pace::prefill_seconds(const TaskView& task, const View& view) const {
  const int32_t tokens = task.pending();
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
    const double tokens = job.lengths.high_remaining(0);
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
        (task.produced + 1) / (task.produced + job.lengths.high_remaining(task.produced));
    due = std::min(due, task.arrival + kPace * *task.slo.deadline * share);
  }
  return due;
}

// Expected utility per token of work from here on.
double Pace::value(const TaskView& task, const Job& job) const {
  const TaskLength& lengths = job.lengths;
  if (task.produced > 0) return task.utility * lengths.index(task.produced);
  return task.utility * lengths.first_index(token_seconds_ > 0 ? job.prompt / token_seconds_ : 0);
}

void Pace::on(const TaskEvent& event, const View& view) {
  const int32_t slot = event.slot;
  const TaskView& task = view.tasks[slot];
  if (event.kind == TaskEventKind::finish) {
    told_.erase(task.id);
    if (std::erase(never_run_, slot) > 0) return;
    Job& job = jobs_[slot];
    if (job.place == Place::waiting) {
      waiting_.erase(job.entry);
      latest_.erase(job.start_by);
    } else if (job.place == Place::given_up) {
      given_up_.erase(job.entry);
    } else if (job.place == Place::hopeless) {
      std::erase(arrived_hopeless_, slot);
      std::erase(hopeless_, slot);
      job = Job();
      return;
    } else {
      std::erase(job.place == Place::started ? started_ : lost_, slot);
    }
    if (task.ended == FinishReason::stop || task.ended == FinishReason::length) {
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
  if (kinds_.empty()) {
    curve_ =
        StepCurve(*view.latency, std::min(view.max_rows, view.max_step_tokens), task.prompt_len);
    step_seconds_ = curve_.step(1);
    token_seconds_ = curve_.per_token(curve_.max_rows());
  }
  if (jobs_.size() <= static_cast<size_t>(slot)) jobs_.resize(slot + 1);
  Job& job = jobs_[slot];
  if (is_hopeless(task, view)) {
    job.place = Place::hopeless;
    arrived_hopeless_.push_back(slot);
    return;  // nothing is learned from it
  }
  Kind& kind = kind_of(task);
  job.kind = &kind;
  const auto told = told_.find(task.id);
  job.lengths = TaskLength(&kind.lengths, told == told_.end() ? 0 : told->second);
  job.place = Place::waiting;
  job.overrun = overrun_;
  job.prompt = prefill_seconds(task, view);
  const double worth = value(task, job);
  job.entry = {-worth, task.arrival, task.id, slot};
  job.start_by = {first_due(task, job) - job.prompt, task.arrival, task.id, slot};
  waiting_.insert(job.entry);
  latest_.insert(job.start_by);

  if (kind.arrivals == 0) kind.first_arrival = task.arrival;
  kind.slo = task.slo;
  kind.arrivals += 1;
  const double weight = 1 / std::min(kind.arrivals, 64.0);
  kind.prompt_seconds += weight * (job.prompt - kind.prompt_seconds);
  kind.value += weight * (worth - kind.value);
  if (kind.arrivals >= 256) {  // fade
    kind.first_arrival += (task.arrival - kind.first_arrival) / 2;
    kind.arrivals /= 2;
  }
}

// Work that `task` needs by each moment to keep its targets: its prefill over the second half of
// the time until its first token is due, then a token each TPOT, or the whole over the second half
// of its deadline.
DemandGrid::Task Pace::demand(const TaskView& task, const Job& job, const DemandGrid& grid,
                              const View& view) const {
  DemandGrid::Task work;
  const double prefill = job.prompt;
  const double first = task.produced > 0 ? view.now : first_due(task, job);
  const TaskLength& lengths = job.lengths;
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

// Work due by each moment that tasks yet to come will need, of classes worth much more than
// `worth`.
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

// Fills rows_ and prompts_: one walk over what has started and what waits, by value.
void Pace::admit(const View& view) {
  rows_.clear();
  prompts_.clear();
  DemandGrid grid(2 * curve_.step(1));
  int64_t blocks = 0;

  std::vector<Ranked> begun;
  for (int32_t slot : started_) {
    const TaskView& task = view.tasks[slot];
    begun.push_back({-value(task, jobs_[slot]), task.arrival, task.id, slot});
  }
  std::sort(begun.begin(), begun.end());
  auto next = begun.begin();
  auto waiting = waiting_.begin();
  int misfits = 0;
  const Kind* kind = nullptr;  // that `beside` is for
  DemandGrid::Task beside;
  while (next != begun.end() || (waiting != waiting_.end() && misfits < kMisfits)) {
    const bool waits = next == begun.end() || (waiting != waiting_.end() && misfits < kMisfits &&
                                               waiting->rank < next->rank);
    const auto [rank, arrival, id, slot] = waits ? *waiting++ : *next++;
    const TaskView& task = view.tasks[slot];
    Job& job = jobs_[slot];
    if (is_lost(task, job, view.now)) continue;
    if (waits && kind != job.kind) {
      kind = job.kind;
      beside = reserve(kind->value, grid, view.now);
    }
    const DemandGrid::Task work = demand(task, job, grid, view);
    const double tokens =
        task.prompt_len + task.produced + job.lengths.high_remaining(task.produced);
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
      const double value = job.kind->value;
      const double late = task.slo.tpot       ? this->value(task, job) / *task.slo.tpot
                          : task.slo.deadline ? kNever
                                              : 0;
      rows_.push_back({token_due(task, job), id, slot, value, late});
    } else {
      const double due = token_due(task, job) - job.prompt - step_seconds_;
      prompts_.push_back({due, id, slot, job.kind->value});
    }
  }
  std::sort(rows_.begin(), rows_.end());
  std::sort(prompts_.begin(), prompts_.end());
  double greatest = 0;
  for (const Row& prompt : prompts_) greatest = std::max(greatest, prompt.value);
  std::stable_partition(prompts_.begin(), prompts_.end(),
                        [&](const Row& prompt) { return kFarMore * prompt.value > greatest; });
}

StepPlan Pace::plan(const View& view) {
  ++plans_;
  now_ = view.now;
  predicted_ = 0;
  StepBuilder step(view, view.max_rows);
  for (int32_t slot : never_run_) step.reject(slot, never_runs(view.tasks[slot], view));
  if (view.live.size() == never_run_.size()) return step.take();
  admit(view);
  choose_step(step);
  StepPlan plan = step.take();
  plan.relegated = find_lost(view);
  if (plan.runs()) predicted_ = view.latency->predict(features_of(plan, view)).median;
  return plan;
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
  for (const Relegation& lost : plan.relegated) relegate(lost.slot);
  const auto renew_prompt = [&](int32_t slot) {
    const TaskView& task = view.tasks[slot];
    jobs_[slot].prompt = task.ready_to_decode() ? 0 : prefill_seconds(task, view);
  };
  for (const KvAction& action : plan.kv) renew_prompt(action.slot);
  for (const PrefillChunk& chunk : plan.prefill) {
    renew_prompt(chunk.slot);
    Job& job = jobs_[chunk.slot];
    if (job.place == Place::waiting) {
      waiting_.erase(job.entry);
      latest_.erase(job.start_by);
      job.place = Place::started;
      started_.push_back(chunk.slot);
    } else if (job.place == Place::given_up) {
      given_up_.erase(job.entry);
      job.place = Place::lost;
      lost_.push_back(chunk.slot);
    }
  }
  overrun_ += outcome.duration - predicted_;
  for (const Row& prompt : prompts_) jobs_[prompt.slot].was_admitted = true;
  while (!latest_.empty() && latest_.begin()->rank <= now_) {
    // A cautious start_by has passed; look again when the last chance has.
    Ranked& start_by = jobs_[latest_.begin()->slot].start_by;
    latest_.erase(latest_.begin());
    start_by.rank = view.now + step_seconds_;
    latest_.insert(start_by);
  }
  for (int32_t slot : outcome.token_slots) {
    const TaskView& task = view.tasks[slot];
    if (jobs_[slot].place == Place::hopeless) continue;
    Job& job = jobs_[slot];
    if (job.produced == 0 && !first_is_late(task)) job.overrun = overrun_;
    // It went on after the tokens before; whether it does after this one is not known yet.
    for (int32_t length = std::max(1, job.produced); length < task.produced; ++length) {
      job.kind->lengths.observe_token(length);
    }
    job.produced = task.produced;
  }
  if (++commits_ % 64 == 0 && !started_.empty()) {
    double context = 0;
    for (int32_t slot : started_) context += view.tasks[slot].cached;
    curve_ =
        StepCurve(*view.latency, curve_.max_rows(), context / static_cast<double>(started_.size()));
  }
}

std::string Pace::inspect() const {
  std::vector<int32_t> waiting, lost = lost_;
  for (const Ranked& entry : waiting_) waiting.push_back(entry.slot);
  for (const Ranked& entry : given_up_) lost.push_back(entry.slot);
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
      .add("lost", lost)
      .add("hopeless", hopeless_)
      .text();
}

PolicyInfo pace_info() {
  return {"pace",
          "ours",
          "Admits by value density under a demand test, serves by due time, learns as it runs.",
          {{"share", "0", "share of the time that admitted work may fill; 0 = learned"}}};
}

std::unique_ptr<Policy> make_pace(const Parameters& parameters) {
  return std::make_unique<Pace>(parameters);
}

PolicyInfo pace_told_info() {
  PolicyInfo info = pace_info();
  info.name = "pace-told";
  info.summary = "Pace told the true lengths, in simulation only: what not knowing them costs.";
  return info;
}

std::unique_ptr<Policy> make_pace_told(const Parameters& parameters) {
  return std::make_unique<PaceTold>(parameters);
}

}  // namespace slicellm
