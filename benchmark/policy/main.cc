// Plan time of every policy on synthetic task tables, as JSON on standard output.
//
//   policy_benchmark [--steps N] [--tasks A,B,...] [--blocks N] [--policy NAME:PARAMETERS]...
//   [--commit TEXT]
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

#include "policy_table.h"
#include "slicellm/error.h"

namespace {

using namespace slicellm;

constexpr int kStepsBetweenEvents = 10;
// CPU time of this thread: what the code costs, whatever else the machine does meanwhile.
double seconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

struct Times {
  std::vector<double> plan, all;
  double rows = 0, kv_actions = 0;
  int events = 0;
};

// The classes of the `edge` workload.
TaskView edge_task(std::mt19937& random) {
  std::uniform_real_distribution<double> uniform(0, 1);
  const double kind = uniform(random);
  TaskView task;
  task.prompt_len = 20 + static_cast<int32_t>(uniform(random) * 100);
  if (kind < 0.7) {
    task.class_id = 0, task.utility = 100, task.slo.deadline = 1.5, task.max_tokens = 30;
  } else {
    task.class_id = kind < 0.85 ? 1 : 2, task.slo.ttft = 2.0, task.max_tokens = 400;
    task.slo.tpot = kind < 0.85 ? 0.125 : 0.100;
  }
  return task;
}

Times measure(const std::string& policy_text, int32_t tasks, int32_t blocks, int steps) {
  std::mt19937 random(1);
  const auto policy = make_policy(policy_text);
  test::PolicyTable table(tasks, blocks, blocks, 64, 2048);
  PlanChecker checker;
  for (int32_t slot = 0; slot < tasks; ++slot) table.arrive(slot, edge_task(random), *policy);

  Times times;
  StepOutcome outcome;
  std::vector<int32_t> leaving;
  double events_seconds = 0;
  const int warm_up = steps / 5;
  for (int step = -warm_up; step < steps; ++step) {
    const double t0 = seconds();
    const StepPlan plan = policy->plan(table.view());
    const double t1 = seconds();
    checker.check(plan, table.view());
    const double t2 = seconds();
    table.apply(plan, outcome);
    const double t3 = seconds();
    policy->commit(plan, outcome, table.view());
    const double t4 = seconds();
    if (step >= 0) {
      times.plan.push_back((t1 - t0) * 1e6);
      times.all.push_back((events_seconds + t2 - t0 + t4 - t3) * 1e6);
      times.rows += static_cast<double>(plan.prefill.size() + plan.decode.size());
      times.kv_actions += static_cast<double>(plan.kv.size());
    }
    leaving.clear();
    for (int32_t slot : outcome.token_slots) {
      if (table.task(slot).produced >= table.task(slot).max_tokens) leaving.push_back(slot);
    }
    if (step % kStepsBetweenEvents == 0 && leaving.empty()) {
      const auto& produced = outcome.token_slots;
      leaving.push_back(produced.empty() ? table.live().front() : produced.front());
    }
    const double before = seconds();
    for (int32_t slot : leaving) {  // with the table's own small work
      table.finish(slot, FinishReason::length, *policy);
      table.arrive(slot, edge_task(random), *policy);
      times.events += step >= 0 ? 2 : 0;
    }
    events_seconds = seconds() - before;
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
  int32_t blocks = 8192;  // of 16 tokens; scarce for 10,000 tasks, ample for 64
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
    } else if (flag == "--blocks") {
      blocks = std::clamp(std::atoi(value.c_str()), 32, 1 << 30);
    } else if (flag == "--policy") {
      policies.push_back(value);
    } else {
      throw Error(ErrorKind::invalid_argument, "flag", flag,
                  "--steps, --tasks, --blocks, --policy, --commit");
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
      const Times times = measure(policy, tasks, blocks, steps);
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
