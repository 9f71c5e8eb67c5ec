// Who can no longer make it under pace, and why; what is learned from who did.
#include <algorithm>

#include "policy/pace.h"

namespace slicellm {
namespace {

constexpr size_t kAtOnce = 256;  // waiting tasks given up in one plan
constexpr double kLeastShare = 0.4, kMostShare = 1.3;
constexpr double kShareUp = 0.002, kShareDown = 0.01, kMostDown = 0.1;

}  // namespace

bool Pace::first_is_late(const TaskView& task) {
  return task.produced > 0 && task.slo.ttft &&
         task.first_token_time > task.arrival + *task.slo.ttft;
}

// Whether a task that finished normally kept its targets.
bool Pace::made_it(const TaskView& task) {
  if (task.produced == 0) return true;
  const double first = task.first_token_time - task.arrival;
  const double last = task.last_token_time - task.arrival;
  if (first_is_late(task)) return false;
  if (task.slo.deadline && last > *task.slo.deadline) return false;
  return !task.slo.tpot || task.produced < 2 ||
         (last - first) / (task.produced - 1) <= *task.slo.tpot;
}

// Whether a task that arrives could not make it even if nothing else ran.
bool Pace::is_hopeless(const TaskView& task, const View& view) const {
  const int32_t tokens = task.pending();
  const StepFeatures alone = {
      .tokens = tokens, .rows = 1, .chunk_work = 0.5 * tokens * tokens, .prefill_tokens = tokens};
  const double first = view.latency->predict(alone).median;
  if (task.slo.ttft && first > *task.slo.ttft) return true;
  if (task.slo.deadline && first > *task.slo.deadline) return true;
  return task.slo.tpot && task.max_tokens > 1 &&
         view.latency->decode_step(1, task.prompt_len) > *task.slo.tpot;
}

// Whether `task` can no longer make it, even if it ran alone from now on.
bool Pace::is_lost(const TaskView& task, const Job& job, double now) const {
  const double fast = curve_.max_rows() > 0 ? curve_.step(1) : 0;
  const TaskLength& lengths = job.lengths;
  if (task.produced == 0) {
    if (task.slo.ttft && now + job.prompt > task.arrival + *task.slo.ttft) return true;
    if (!task.slo.deadline) return false;
    const double rest = (lengths.low_remaining(0) - 1) * fast;
    return now + job.prompt + rest > task.arrival + *task.slo.deadline;
  }
  if (first_is_late(task)) return true;
  const double decoding = now + job.prompt;
  const double least = lengths.low_remaining(task.produced) * fast;
  if (task.slo.deadline && decoding + least > task.arrival + *task.slo.deadline) return true;
  if (!task.slo.tpot) return false;
  // Behind by more than running alone to its end could make up for.
  const double behind = decoding - (task.first_token_time + (task.produced - 1) * *task.slo.tpot);
  const double rest = lengths.high_remaining(task.produced);
  return behind + rest * fast > rest * *task.slo.tpot;
}

// Tasks that can no longer make it, and why.
std::vector<Relegation> Pace::find_lost(const View& view) const {
  std::vector<Relegation> lost;
  const auto look = [&](int32_t slot) {
    const TaskView& task = view.tasks[slot];
    if (!is_lost(task, jobs_[slot], view.now)) return;
    lost.push_back({slot, cause_of(task, jobs_[slot], view.now)});
  };
  for (int32_t slot : arrived_hopeless_) lost.push_back({slot, MissCause::not_admitted});
  for (const Ranked& entry : latest_) {
    if (entry.rank > view.now || lost.size() >= arrived_hopeless_.size() + kAtOnce) break;
    look(entry.slot);
  }
  for (size_t i = started_.size(); i-- > 0;) look(started_[i]);
  return lost;
}

// Why a lost task is lost.
MissCause Pace::cause_of(const TaskView& task, const Job& job, double now) const {
  if (task.produced == 0 && !job.was_admitted) return MissCause::not_admitted;
  // As if steps had taken as long as predicted since it came, or since a first token in time.
  const double overrun = std::max(0.0, overrun_ - job.overrun);
  TaskView punctual = task;
  if (first_is_late(task)) punctual.first_token_time -= overrun;
  if (!is_lost(punctual, job, now - overrun)) return MissCause::slow_steps;
  if (task.produced == 0 || first_is_late(task)) return MissCause::too_late;
  return task.produced > job.lengths.high_remaining(0) ? MissCause::length : MissCause::starved;
}

// Moves a task that can no longer make it behind all that can.
void Pace::relegate(int32_t slot) {
  Job& job = jobs_[slot];
  if (job.place == Place::hopeless) {
    std::erase(arrived_hopeless_, slot);
    hopeless_.push_back(slot);
    return;
  }
  if (job.place == Place::waiting) {
    waiting_.erase(job.entry);
    latest_.erase(job.start_by);
    job.place = Place::given_up;
    job.entry.rank = static_cast<double>(given_ups_++);
    given_up_.insert(job.entry);
    return;
  }
  std::erase(started_, slot);
  judge(*job.kind, false);
  job.place = Place::lost;
  lost_.push_back(slot);
}

// An admitted task of `kind` made it, or missed: then also classes worth much less had too much, by
// what as many of their tasks as it was worth have gained them.
void Pace::judge(Kind& kind, bool made) {
  if (!learns_) return;
  const auto move = [](Kind& k, double by) {
    k.share = std::clamp(k.share + by, kLeastShare, kMostShare);
  };
  move(kind, made ? kShareUp : -kShareDown);
  if (made) return;
  for (auto& [key, other] : kinds_) {
    if (kMuchMore * other.value >= kind.value) continue;
    const double worth = kind.value / other.value;  // tasks of the other kind
    move(other, -std::clamp(kShareUp * worth, kShareDown, kMostDown));
  }
}

}  // namespace slicellm
