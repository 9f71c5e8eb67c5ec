#include <chrono>
#include <cmath>
#include <limits>
#include <map>
#include <string_view>
#include <utility>

#include "sim/instance.h"
#include "slicellm/error.h"
#include "slicellm/simulation.h"

namespace slicellm {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kReportEvery = 0.1;  // seconds between two calls of progress
const std::vector<std::string> kNoTokenBytes;

// One run of any number of instances: passes tasks on as their time comes, in the order of virtual
// time over all instances, and reads what became of them from the loops' event logs.
class Simulation {
 public:
  Simulation(std::vector<SimInstance> instances, std::unique_ptr<Dispatcher> dispatcher,
             std::span<const SimClass> classes, std::span<const SimTask> tasks,
             const SimOptions& options)
      : options_(options),
        classes_(classes),
        tasks_(tasks),
        engine_options_(recording(options.engine)),
        dispatcher_(std::move(dispatcher)) {
    for (SimInstance& parts : instances) {
      instances_.push_back(std::make_unique<Instance>(std::move(parts), engine_options_));
    }
    result_.instances.resize(instances_.size());
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
    while (ended_ < tasks_.size()) {
      now_ = next_time();
      if (!std::isfinite(now_)) {
        throw Error(ErrorKind::state, "dispatch " + dispatcher_->name(), "tasks kept for ever",
                    "every task to be sent to an instance");
      }
      for (size_t k = 0; k < instances_.size(); ++k) {
        if (instances_[k]->next() <= now_) read_log(k);
      }
      take_arrivals();
      for (const Dispatch& d : dispatcher_->dispatch(now_)) send(d);
      for (auto& instance : instances_) {
        if (instance->next() <= now_) instance->iterate(now_);
      }
      report();
    }
    for (size_t k = 0; k < instances_.size(); ++k) {
      Loop& loop = instances_[k]->loop();
      loop.check_integrity();
      result_.instances[k].latency_json = loop.latency().to_json();
      result_.instances[k].policy_state = loop.policy().inspect();
    }
    result_.dispatch_state = dispatcher_->inspect();
    return std::move(result_);
  }

 private:
  bool may_arrive() const {
    return next_ < tasks_.size() &&
           (options_.in_flight == 0 || next_ - ended_ < static_cast<size_t>(options_.in_flight));
  }

  double next_time() const {
    double time = dispatcher_->wake_at();
    if (may_arrive()) {
      const double arrival = tasks_[next_].arrival;
      time = options_.in_flight == 0 && arrival > now_ ? std::min(time, arrival) : now_;
    }
    for (const auto& instance : instances_) time = std::min(time, instance->next());
    return std::max(time, now_);
  }

  void take_arrivals() {
    for (; may_arrive(); ++next_) {
      const SimTask& task = tasks_[next_];
      const double arrival = options_.in_flight > 0 ? now_ : task.arrival;
      if (task.class_id < 0 || static_cast<size_t>(task.class_id) >= classes_.size()) {
        throw Error(ErrorKind::invalid_argument, "class_id", std::to_string(task.class_id),
                    "a class of the run");
      }
      if (!(arrival >= last_arrival_)) {
        throw Error(ErrorKind::invalid_argument, "arrival",
                    std::to_string(arrival) + " after " + std::to_string(last_arrival_),
                    "tasks in order of their arrival");
      }
      if (arrival > now_) return;
      last_arrival_ = arrival;
      result_.tasks.arrival[next_] = arrival;
      result_.most_live = std::max(result_.most_live, static_cast<int32_t>(next_ + 1 - ended_));
      dispatcher_->arrive(describe(next_));
    }
  }

  DispatchTask describe(size_t i) const {
    return {.number = static_cast<int64_t>(i),
            .arrival = result_.tasks.arrival[i],
            .prompt_tokens = tasks_[i].prompt_tokens,
            .max_tokens = tasks_[i].max_tokens,
            .produced = result_.tasks.tokens[i]};
  }

  // An instance sees a task that it gets again as a new one whose prompt is prompt + output so far.
  void send(const Dispatch& d) {
    const size_t i = static_cast<size_t>(d.task);
    const SimTask& task = tasks_[i];
    const SimClass& c = classes_[task.class_id];
    const int32_t produced = result_.tasks.tokens[i];
    TaskSpec spec;
    const int32_t prompt = task.prompt_tokens > 0 ? task.prompt_tokens + produced : 0;
    spec.prompt.assign(static_cast<size_t>(prompt), 0);
    spec.slo = c.slo;
    spec.utility = c.utility;
    spec.class_name = c.name;
    spec.max_tokens = std::min(d.max_tokens, task.max_tokens - produced);
    spec.true_output_tokens =
        task.output_tokens > 0 ? task.output_tokens - produced : task.output_tokens;
    spec.validate();
    Instance& instance = *instances_[static_cast<size_t>(d.instance)];
    if (LengthListener* told = instance.length_listener()) {
      told->tell(static_cast<TaskId>(i + 1),
                 spec.true_output_tokens > 0 ? std::min(spec.true_output_tokens, spec.max_tokens)
                                             : spec.max_tokens);
    }
    instance.enqueue(std::make_unique<TaskState>(std::move(spec), static_cast<TaskId>(i + 1),
                                                 class_ids_[task.class_id],
                                                 result_.tasks.arrival[i], kNoTokenBytes),
                     now_);
  }

  void read_log(size_t k) {
    Loop& loop = instances_[k]->loop();
    loop.ended().clear();
    const std::vector<LogEvent> events = loop.recorder().drain_events();
    const std::vector<StepRecord> steps = loop.recorder().drain_steps();
    SimInstanceResult& instance = result_.instances[k];
    for (const StepRecord& s : steps) {
      dispatcher_->ran(static_cast<int32_t>(k), s);
      ++result_.num_steps;
      ++instance.num_steps;
      result_.busy_seconds += s.duration;
      instance.busy_seconds += s.duration;
      result_.invalid_tokens += s.padding_rows;
      result_.pad_tokens += s.padding_tokens;
      const int32_t rows = s.decode_rows + s.padding_rows;
      const int32_t prompt = s.prefill_tokens + s.padding_tokens;
      if (s.decode_rows > 0) {
        ++result_.decode_steps;
        result_.decode_rows += rows;
      }
      if (rows + prompt > 0) result_.prefill_seconds += s.duration * prompt / (rows + prompt);
      result_.plan_seconds.add(s.plan_seconds);
    }
    if (!steps.empty()) instance.end = steps.back().start + steps.back().duration;
    for (const LogEvent& e : events) {
      if (options_.engine.record_events) record(e);
      if (e.kind == EventKind::token) read_token(e);
      if (e.kind == EventKind::finish || e.kind == EventKind::reject) read_end(k, e);
    }
    if (!options_.engine.record_events) return;
    result_.steps.insert(result_.steps.end(), steps.begin(), steps.end());
  }

  void read_token(const LogEvent& e) {
    SimTaskResults& t = result_.tasks;
    const size_t i = static_cast<size_t>(e.task - 1);
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
  }

  // Keeps an event as an event of the whole task: between two slices it is preempted and resumes.
  void record(LogEvent e) {
    const size_t i = static_cast<size_t>(e.task - 1);
    const int32_t produced = result_.tasks.tokens[i];
    if (produced > 0 && e.kind == EventKind::arrive) return;
    if (produced > 0 && e.kind == EventKind::admit) e.kind = EventKind::resume;
    if (e.kind == EventKind::finish && !ends_task(e)) {
      e.kind = EventKind::preempt;
      e.value = tasks_[i].prompt_tokens + produced - 1;
    }
    result_.events.push_back(e);
  }

  // Does a finish event end its task, or a slice of it?
  bool ends_task(const LogEvent& e) const {
    const size_t i = static_cast<size_t>(e.task - 1);
    return static_cast<FinishReason>(e.value) != FinishReason::length ||
           result_.tasks.tokens[i] >= tasks_[i].max_tokens;
  }

  void read_end(size_t k, const LogEvent& e) {
    SimTaskResults& t = result_.tasks;
    const size_t i = static_cast<size_t>(e.task - 1);
    const FinishReason reason =
        e.kind == EventKind::reject ? FinishReason::rejected : static_cast<FinishReason>(e.value);
    const bool ended = e.kind == EventKind::reject || ends_task(e);
    if (ended) {
      t.finish[i] = e.t;
      t.reason[i] = static_cast<uint8_t>(reason);
      result_.end = std::fmax(result_.end, e.t);
      ++result_.instances[k].ended;
      ++ended_;
    }
    dispatcher_->returned(static_cast<int32_t>(k), describe(i), ended);
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
  const std::unique_ptr<Dispatcher> dispatcher_;
  std::vector<std::unique_ptr<Instance>> instances_;
  double now_ = 0;
  SimResult result_;
  size_t next_ = 0, ended_ = 0;
  double last_arrival_ = -std::numeric_limits<double>::infinity();
  uint64_t rounds_ = 0;
  std::chrono::steady_clock::time_point reported_ = std::chrono::steady_clock::now();
};

}  // namespace

SimResult simulate(SimInstance instance, std::span<const SimClass> classes,
                   std::span<const SimTask> tasks, const SimOptions& options) {
  std::vector<SimInstance> instances;
  instances.push_back(std::move(instance));
  return simulate_cluster(std::move(instances), make_dispatcher("round_robin", 1, View()), classes,
                          tasks, options);
}

SimResult simulate_cluster(std::vector<SimInstance> instances,
                           std::unique_ptr<Dispatcher> dispatcher,
                           std::span<const SimClass> classes, std::span<const SimTask> tasks,
                           const SimOptions& options) {
  return Simulation(std::move(instances), std::move(dispatcher), classes, tasks, options).run();
}

}  // namespace slicellm
