// Plan time of every policy on synthetic task tables, as JSON on standard output.
//
//   policy_benchmark [--steps N] [--tasks A,B,...] [--policy NAME:PARAMETERS]... [--commit TEXT]
//
// The table holds a fixed number of live tasks of the three classes of the `edge` workload. Every
// 10 steps, and when a task has all its tokens, one leaves and another arrives. `plan_us` is
// Policy::plan alone (CPU time of the thread); `all_us` adds the events since the last plan, the
// plan check and Policy::commit, that is everything that a policy costs an engine in a step.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include <time.h>

#include "slicellm/error.h"
#include "slicellm/policy.h"

namespace {

using namespace slicellm;

constexpr int kStepsBetweenEvents = 10;
constexpr int32_t kBlocks = 8192;  // of 16 tokens; scarce for 10,000 tasks, ample for 64

// CPU time of this thread: what the code costs, whatever else the machine does meanwhile.
double seconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

std::unique_ptr<LatencyModel> step_times() {
  std::vector<LatencySample> samples;  // 10 ms + 1.2 ms a row + 0.4 ms a prompt token
  for (int32_t rows = 1; rows <= 64; ++rows) {
    samples.push_back({{.tokens = rows, .rows = rows, .context = rows * 100.0},
                       0.010 + 0.0012 * rows + 0.00001 * rows});
  }
  for (int32_t n = 16; n <= 2048; n *= 2) {
    samples.push_back({{.tokens = n, .rows = 1, .chunk_work = 0.5 * n * n, .prefill_tokens = n},
                       0.010 + 0.0004 * n});
  }
  return fit_latency_model(samples, "synthetic");
}

// The engine's side of a task table, as far as policies see it.
class Table {
 public:
  explicit Table(int32_t tasks) : tasks_(tasks), target_(tasks), latency_(step_times()) {
    view_.total_blocks = view_.free_blocks = kBlocks;
    view_.total_host_blocks = view_.free_host_blocks = kBlocks;
    view_.block_bytes = 1 << 20;
    view_.max_rows = 64;
    view_.max_step_tokens = 2048;
    view_.latency = latency_.get();
  }

  const View& view() {
    view_.now = now_;
    view_.tasks = tasks_;
    view_.live = live_;
    return view_;
  }

  void arrive(int32_t slot, Policy& policy) {
    std::uniform_real_distribution<double> uniform(0, 1);
    const double kind = uniform(random_);
    TaskView& t = tasks_[slot] = TaskView();
    t.id = next_id_++;
    t.arrival = now_;
    t.prompt_len = 20 + static_cast<int32_t>(uniform(random_) * 100);
    if (kind < 0.7) {
      t.class_id = 0, t.utility = 100, t.slo.deadline = 1.5, t.max_tokens = 30;
    } else {
      t.class_id = kind < 0.85 ? 1 : 2, t.slo.ttft = 2.0, t.max_tokens = 400;
      t.slo.tpot = kind < 0.85 ? 0.125 : 0.100;
    }
    live_.push_back(slot);
    policy.on({TaskEventKind::arrive, slot, FinishReason::none}, view());
  }

  void finish(int32_t slot, Policy& policy) {
    TaskView& t = tasks_[slot];
    release(t);
    live_.erase(std::find(live_.begin(), live_.end(), slot));
    policy.on({TaskEventKind::finish, slot, FinishReason::stop}, view());
    t.id = -1;
  }

  // Applies the plan; returns the slots that ended.
  std::vector<int32_t> apply(const StepPlan& plan, StepOutcome& outcome) {
    outcome.features = features_of(plan, view());
    outcome.start = now_;
    outcome.duration = latency_->predict(outcome.features).median;
    now_ += outcome.duration;
    for (const KvAction& action : plan.kv) {
      TaskView& t = tasks_[action.slot];
      release(t);
      if (action.kind == KvActionKind::drop) t.cached = t.blocks = 0, t.kv = KvState::none;
      if (action.kind == KvActionKind::swap_out) t.kv = KvState::host;
      if (action.kind == KvActionKind::swap_in) t.kv = KvState::device;
      (t.kv == KvState::host ? view_.free_host_blocks : view_.free_blocks) -= t.blocks;
    }
    for (const PrefillChunk& chunk : plan.prefill) append(chunk.slot, chunk.tokens, outcome);
    for (int32_t slot : plan.decode) append(slot, 1, outcome);
    std::vector<int32_t> ended;
    for (int32_t slot : outcome.token_slots) {
      if (tasks_[slot].produced >= tasks_[slot].max_tokens) ended.push_back(slot);
    }
    return ended;
  }

  int32_t size() const { return target_; }
  const std::vector<int32_t>& live() const { return live_; }

 private:
  void release(const TaskView& t) {
    if (t.kv == KvState::device) view_.free_blocks += t.blocks;
    if (t.kv == KvState::host) view_.free_host_blocks += t.blocks;
  }

  void append(int32_t slot, int32_t tokens, StepOutcome& outcome) {
    TaskView& t = tasks_[slot];
    t.kv = KvState::device;
    t.cached += tokens;
    const int32_t blocks = std::max(t.blocks, view_.blocks_for(t.cached));
    view_.free_blocks -= blocks - t.blocks;
    t.blocks = blocks;
    if (t.pending() > 0) return;
    t.produced += 1;
    t.last_token_time = now_;
    outcome.token_slots.push_back(slot);
  }

  std::vector<TaskView> tasks_;
  std::vector<int32_t> live_;
  int32_t target_;
  std::unique_ptr<LatencyModel> latency_;
  View view_;
  double now_ = 0;
  TaskId next_id_ = 0;
  std::mt19937 random_{1};
};

struct Times {
  std::vector<double> plan, all;
  double rows = 0, kv_actions = 0;
  int events = 0;
};

Times measure(const std::string& policy_text, int32_t tasks, int steps) {
  const auto policy = make_policy(policy_text);
  Table table(tasks);
  PlanChecker checker;
  for (int32_t slot = 0; slot < tasks; ++slot) table.arrive(slot, *policy);

  Times times;
  double events_seconds = 0;
  const int warm_up = steps / 5;
  for (int step = -warm_up; step < steps; ++step) {
    const double t0 = seconds();
    const StepPlan plan = policy->plan(table.view());
    const double t1 = seconds();
    checker.check(plan, table.view());
    const double t2 = seconds();
    StepOutcome outcome;
    std::vector<int32_t> ended = table.apply(plan, outcome);
    const double t3 = seconds();
    policy->commit(plan, outcome, table.view());
    const double t4 = seconds();
    if (step >= 0) {
      times.plan.push_back((t1 - t0) * 1e6);
      times.all.push_back((events_seconds + t2 - t0 + t4 - t3) * 1e6);
      times.rows += plan.prefill.size() + plan.decode.size();
      times.kv_actions += plan.kv.size();
    }
    if (step % kStepsBetweenEvents == 0 && ended.empty()) {
      ended.push_back(outcome.token_slots.empty() ? table.live().front()
                                                  : outcome.token_slots.front());
    }
    events_seconds = 0;
    for (int32_t slot : ended) {
      const double before = seconds();
      table.finish(slot, *policy);
      table.arrive(slot, *policy);
      events_seconds += seconds() - before;  // with the table's own work
      times.events += step >= 0 ? 2 : 0;
    }
  }
  return times;
}

std::string percentiles(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const auto at = [&](double share) {
    return values[static_cast<size_t>(share * (values.size() - 1))];
  };
  char text[128];
  std::snprintf(text, sizeof(text), "{\"p50\": %.2f, \"p99\": %.2f, \"max\": %.2f}", at(0.5),
                at(0.99), values.back());
  return text;
}

std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(": ") + 2);
  }
  return "unknown";
}

std::vector<int32_t> parse_counts(const std::string& text) {
  std::vector<int32_t> counts;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    counts.push_back(std::atoi(text.substr(begin, end - begin).c_str()));
    if (counts.back() < 1 || counts.back() > 1000000) {
      throw Error(ErrorKind::invalid_argument, "--tasks", text, "numbers from 1 to 1000000");
    }
    begin = end + 1;
  }
  return counts;
}

int run(int argc, char** argv) {
  int steps = 5000;
  std::vector<int32_t> counts = {64, 10000};
  std::vector<std::string> policies;
  std::string commit = "unknown", command = "policy_benchmark";
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (i + 1 >= argc)
      throw Error(ErrorKind::invalid_argument, flag, "nothing", "a value after it");
    const std::string value = argv[++i];
    if (flag == "--commit") {
      commit = value;
      continue;
    }
    command += " " + flag + " " + value;
    if (flag == "--steps") {
      steps = std::clamp(std::atoi(value.c_str()), 100, 10000000);
    } else if (flag == "--tasks") {
      counts = parse_counts(value);
    } else if (flag == "--policy") {
      policies.push_back(value);
    } else {
      throw Error(ErrorKind::invalid_argument, "flag", flag,
                  "--steps, --tasks, --policy, --commit");
    }
  }
  if (policies.empty()) {
    for (const PolicyInfo& info : list_policies()) policies.push_back(info.name);
    policies.push_back("slice:mask_layout=spread");
  }
  std::printf("{\n  \"command\": \"%s\",\n  \"machine\": \"%s\",\n  \"commit\": \"%s\",\n",
              command.c_str(), cpu_name().c_str(), commit.c_str());
  std::printf("  \"clock\": \"thread CPU time\",\n");
  std::printf("  \"steps\": %d,\n  \"results\": [", steps);
  const char* separator = "\n";
  for (const std::string& policy : policies) {
    for (int32_t tasks : counts) {
      const Times times = measure(policy, tasks, steps);
      std::printf(
          "%s    {\"policy\": \"%s\", \"tasks\": %d, \"plan_us\": %s, \"all_us\": %s, "
          "\"rows_per_step\": %.1f, \"events_per_step\": %.2f, \"kv_actions_per_step\": %.3f}",
          separator, policy.c_str(), tasks, percentiles(times.plan).c_str(),
          percentiles(times.all).c_str(), times.rows / steps, 1.0 * times.events / steps,
          times.kv_actions / steps);
      std::fflush(stdout);
      separator = ",\n";
    }
  }
  std::printf("\n  ]\n}\n");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "policy_benchmark: %s\n", error.what());
    return 2;
  }
}
