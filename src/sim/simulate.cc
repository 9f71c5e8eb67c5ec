#include <chrono>
#include <cmath>
#include <limits>
#include <map>
#include <string_view>
#include <utility>

#include "engine/loop.h"
#include "slicellm/error.h"
#include "slicellm/simulation.h"

namespace slicellm {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kReportEvery = 0.1;  // seconds between two calls of progress
const std::vector<std::string> kNoTokenBytes;

// One run: feeds the loop with tasks as their time comes and reads what became of them from the
// loop's event log.
class Simulation {
 public:
  Simulation(std::shared_ptr<Executor> executor, std::unique_ptr<Policy> policy,
             std::unique_ptr<LatencyModel> belief, std::span<const SimClass> classes,
             std::span<const SimTask> tasks, const SimOptions& options)
      : options_(options),
        classes_(classes),
        tasks_(tasks),
        engine_options_(recording(options.engine)),
        clock_(make_virtual_clock()),
        loop_(std::move(executor), std::move(policy), std::move(belief), clock_, engine_options_) {
    SimTaskResults& t = result_.tasks;
    for (auto* column :
         {&t.arrival, &t.first_token, &t.last_token, &t.finish, &t.max_gap, &t.max_lateness}) {
      column->assign(tasks.size(), kNan);
    }
    t.tokens.assign(tasks.size(), 0);
    t.reason.assign(tasks.size(), static_cast<uint8_t>(FinishReason::none));
    std::map<std::string_view, int32_t> numbers;
    for (const SimClass& c : classes) {
      class_ids_.push_back(
          numbers.emplace(c.name, static_cast<int32_t>(numbers.size())).first->second);
    }
  }

  SimResult run() {
    size_t in_flight = 0;
    while (ended_ < tasks_.size()) {
      const double now = clock_->now();
      if (options_.in_flight > 0) {
        for (; next_ < tasks_.size() && in_flight < static_cast<size_t>(options_.in_flight);
             ++in_flight) {
          enqueue(now);
        }
      } else {
        // One arrival ahead, so that the loop knows when to wake.
        while (next_ < tasks_.size() && last_arrival_ <= now) enqueue(tasks_[next_].arrival);
      }
      const double wake = loop_.iterate();
      const size_t before = ended_;
      read_log();
      loop_.ended().clear();
      in_flight -= options_.in_flight > 0 ? ended_ - before : 0;
      if (wake > clock_->now() && std::isfinite(wake)) clock_->advance_to(wake);
      report();
    }
    loop_.check_integrity();
    result_.latency_json = loop_.latency().to_json();
    result_.policy_state = loop_.policy().inspect();
    return std::move(result_);
  }

 private:
  void enqueue(double arrival) {
    const SimTask& task = tasks_[next_];
    if (task.class_id < 0 || static_cast<size_t>(task.class_id) >= classes_.size()) {
      throw Error(ErrorKind::invalid_argument, "class_id", std::to_string(task.class_id),
                  "a class of the run");
    }
    if (!(arrival >= last_arrival_)) {
      throw Error(ErrorKind::invalid_argument, "arrival",
                  std::to_string(arrival) + " after " + std::to_string(last_arrival_),
                  "tasks in order of their arrival");
    }
    const SimClass& c = classes_[task.class_id];
    TaskSpec spec;
    spec.prompt.assign(task.prompt_tokens > 0 ? static_cast<size_t>(task.prompt_tokens) : 0, 0);
    spec.slo = c.slo;
    spec.utility = c.utility;
    spec.class_name = c.name;
    spec.max_tokens = task.max_tokens;
    spec.true_output_tokens = task.output_tokens;
    spec.validate();
    last_arrival_ = arrival;
    ++next_;
    loop_.enqueue(std::make_unique<TaskState>(std::move(spec), static_cast<TaskId>(next_),
                                              class_ids_[task.class_id], arrival, kNoTokenBytes));
    result_.most_live = std::max(result_.most_live, static_cast<int32_t>(next_ - ended_));
  }

  void read_log() {
    Recorder& recorder = loop_.recorder();
    recorder.flush();
    std::vector<LogEvent> events = recorder.drain_events();
    std::vector<StepRecord> steps = recorder.drain_steps();
    for (const LogEvent& e : events) read(e);
    for (const StepRecord& s : steps) {
      ++result_.num_steps;
      result_.busy_seconds += s.duration;
      const int32_t tokens = s.decode_rows + s.prefill_tokens;
      if (tokens > 0) result_.prefill_seconds += s.duration * s.prefill_tokens / tokens;
      result_.plan_seconds.add(s.plan_seconds);
    }
    if (!options_.engine.record_events) return;
    result_.events.insert(result_.events.end(), events.begin(), events.end());
    result_.steps.insert(result_.steps.end(), steps.begin(), steps.end());
  }

  void read(const LogEvent& e) {
    SimTaskResults& t = result_.tasks;
    const size_t i = static_cast<size_t>(e.task - 1);
    switch (e.kind) {
      case EventKind::arrive:
        t.arrival[i] = e.t;
        break;
      case EventKind::token:
        if (const Slo& slo = classes_[tasks_[i].class_id].slo; slo.ttft && slo.tpot) {
          const double due = t.arrival[i] + *slo.ttft + t.tokens[i] * *slo.tpot;
          t.max_lateness[i] = std::fmax(t.max_lateness[i], e.t - due);
        }
        if (t.tokens[i]++ == 0) {
          t.first_token[i] = e.t;
        } else {
          const double gap = e.t - t.last_token[i];
          result_.gaps.add(gap);
          t.max_gap[i] = std::fmax(t.max_gap[i], gap);
        }
        t.last_token[i] = e.t;
        break;
      case EventKind::finish:
      case EventKind::reject:
        t.finish[i] = e.t;
        t.reason[i] =
            static_cast<uint8_t>(e.kind == EventKind::reject ? FinishReason::rejected
                                                             : static_cast<FinishReason>(e.value));
        result_.end = std::fmax(result_.end, e.t);
        ++ended_;
        break;
      default:
        break;
    }
  }

  void report() {
    if (!options_.progress || ++rounds_ % 64 != 0) return;
    const auto now = std::chrono::steady_clock::now();
    if (std::chrono::duration<double>(now - reported_).count() < kReportEvery) return;
    reported_ = now;
    options_.progress(static_cast<int64_t>(ended_));
  }

  // The loop always records; what is not asked for is read and forgotten.
  static EngineOptions recording(EngineOptions options) {
    options.record_events = true;
    return options;
  }

  const SimOptions& options_;
  const std::span<const SimClass> classes_;
  const std::span<const SimTask> tasks_;
  std::vector<int32_t> class_ids_;  // as an engine numbers them: same name, same number
  const EngineOptions engine_options_;
  const std::shared_ptr<Clock> clock_;
  Loop loop_;
  SimResult result_;
  size_t next_ = 0, ended_ = 0;
  double last_arrival_ = -std::numeric_limits<double>::infinity();
  uint64_t rounds_ = 0;
  std::chrono::steady_clock::time_point reported_ = std::chrono::steady_clock::now();
};

}  // namespace

SimResult simulate(std::shared_ptr<Executor> executor, std::unique_ptr<Policy> policy,
                   std::unique_ptr<LatencyModel> belief, std::span<const SimClass> classes,
                   std::span<const SimTask> tasks, const SimOptions& options) {
  return Simulation(std::move(executor), std::move(policy), std::move(belief), classes, tasks,
                    options)
      .run();
}

}  // namespace slicellm
