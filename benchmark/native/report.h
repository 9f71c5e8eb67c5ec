#pragma once

#include <map>
#include <string>
#include <vector>

#include "slicellm/engine.h"
#include "workload.h"

namespace slicellm::bench {

// Mean and percentiles (interpolated linearly) of a set of values; 0 values: all NaN.
struct Summary {
  double mean, p50, p99, max;
};
Summary summarize(std::vector<double> values);

struct ClassMetrics {
  int32_t submitted = 0, met = 0;
  double utility = 0, utility_met = 0;
};

// The metrics of one run; definitions are those of slicellm/bench/metrics.py. Times in seconds.
struct Metrics {
  ClassMetrics all;
  std::map<std::string, ClassMetrics> classes;
  std::map<std::string, int32_t> finish;
  Summary ttft, tpot, itl, e2el, plan;
  double makespan = 0, output_tokens = 0, prefill_share = 0;
};

// `results[i]` is what became of the task of `specs[i]`.
Metrics compute(const std::vector<TaskSpec>& specs, const std::vector<TaskResult>& results,
                const std::vector<StepRecord>& steps);

void print_table(const std::vector<std::pair<std::string, Metrics>>& policies);

// Each token's time in ms from its task's arrival.
void print_tokens(const std::vector<TaskSpec>& specs, const std::vector<TaskResult>& results);

// The result file: the keys of the Python benchmark's. `config` is JSON text of an object.
// Throws Error(io).
void write_result(const std::string& path, const std::string& config,
                  const std::vector<std::pair<std::string, Metrics>>& policies);

std::string json_string(const std::string& text);

}  // namespace slicellm::bench
