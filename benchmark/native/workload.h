#pragma once

#include <cstdint>
#include <vector>

#include "options.h"
#include "slicellm/latency_model.h"
#include "slicellm/task.h"

namespace slicellm::bench {

// A class of the workload `edge`; targets before scaling.
struct TaskClass {
  const char* name;
  double share, utility;
  Slo slo;
  int32_t max_tokens;
  int32_t prompt_low, prompt_high;  // uniform
  double mu, sigma;                 // of log output tokens; sigma 0: uniform in the range
  int32_t output_low, output_high;  // range, or clip of the lognormal
};
const std::vector<TaskClass>& edge_classes();

struct PlannedTask {
  int32_t class_index = 0;
  int32_t prompt_tokens = 0, output_tokens = 0, max_tokens = 0;
  double arrival = 0;  // seconds from the start of the run
};

// Class, lengths and cap of n tasks. Classes keep their shares to within one task, in random order;
// each part has its own random stream.
std::vector<PlannedTask> draw_tasks(int32_t n, uint64_t seed, int32_t limit);

// What a workload asks of a machine: see slicellm/bench/saturation.py, whose definitions these are.
struct OfferedWork {
  double mean_context = 0;                                      // tokens
  double decode_1 = 0, best_decode = 0;                         // seconds: l(1), and min l(b)/b
  double prefill = 0, decode = 0;                               // seconds a task, mean
  double saturation() const { return 1 / (prefill + decode); }  // tasks/s
};
OfferedWork offered_work(const std::vector<PlannedTask>& tasks, const LatencyModel& latency,
                         int32_t max_rows);

// Sets the arrivals that the options ask for; `rate` in tasks/s. Poisson gaps are cumulated and
// rescaled so that the last task arrives at n/rate.
void set_arrivals(std::vector<PlannedTask>& tasks, const Options& options, double rate);

// The task for the engine, with random token ids as its prompt.
TaskSpec make_spec(const PlannedTask& task, int32_t number, double slo_scale, uint64_t seed,
                   int32_t vocab);

}  // namespace slicellm::bench
