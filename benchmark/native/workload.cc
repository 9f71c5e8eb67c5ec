#include "workload.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <random>

namespace slicellm::bench {
namespace {

enum Part : uint32_t { arrivals, classes, prompts, outputs, tokens };

// Draws that are the same with every standard library.
class Random {
 public:
  Random(uint64_t seed, Part part, uint32_t index = 0) {
    std::seed_seq sequence{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32),
                           static_cast<uint32_t>(part), index};
    engine_.seed(sequence);
  }
  double uniform() { return static_cast<double>(engine_() >> 11) * 0x1p-53; }  // [0, 1)
  int32_t whole(int32_t low, int32_t high) {                                   // both included
    return low + static_cast<int32_t>(uniform() * (static_cast<double>(high) - low + 1));
  }
  double exponential() { return -std::log1p(-uniform()); }
  double normal() {  // Box-Muller
    return std::sqrt(2 * exponential()) * std::cos(2 * std::numbers::pi * uniform());
  }

 private:
  std::mt19937_64 engine_;
};

}  // namespace

const std::vector<TaskClass>& edge_classes() {
  static const std::vector<TaskClass> edge = {
      {"realtime", 0.70, 100, {.ttft = {}, .tpot = {}, .deadline = 1.5}, 30, 20, 60, 0, 0, 8, 20},
      {"voice",
       0.15,
       1,
       {.ttft = 2.0, .tpot = 0.125, .deadline = {}},
       300,
       30,
       120,
       4.4,
       0.5,
       20,
       300},
      {"qa",
       0.15,
       1,
       {.ttft = 2.0, .tpot = 0.100, .deadline = {}},
       400,
       30,
       200,
       4.9,
       0.5,
       20,
       400},
  };
  return edge;
}

std::vector<PlannedTask> draw_tasks(int32_t n, uint64_t seed, int32_t limit) {
  const auto& edge = edge_classes();
  std::vector<PlannedTask> tasks(static_cast<size_t>(n));
  // Rounding the cumulated shares keeps every class to within one task of its share.
  size_t next = 0;
  double cumulated = 0;
  for (size_t c = 0; c < edge.size(); ++c) {
    cumulated += edge[c].share;
    const auto end = static_cast<size_t>(std::lround(std::min(cumulated, 1.0) * n));
    for (; next < end; ++next) tasks[next].class_index = static_cast<int32_t>(c);
  }
  Random order(seed, Part::classes), prompt(seed, Part::prompts), output(seed, Part::outputs);
  for (size_t i = tasks.size(); i > 1; --i) {  // Fisher-Yates
    std::swap(tasks[i - 1].class_index,
              tasks[static_cast<size_t>(order.whole(0, static_cast<int32_t>(i) - 1))].class_index);
  }
  for (PlannedTask& task : tasks) {
    const TaskClass& c = edge[static_cast<size_t>(task.class_index)];
    task.prompt_tokens = prompt.whole(c.prompt_low, c.prompt_high);
    task.max_tokens = limit > 0 ? std::min(limit, c.max_tokens) : c.max_tokens;
    const double length = c.sigma > 0 ? std::rint(std::exp(c.mu + c.sigma * output.normal()))
                                      : output.whole(c.output_low, c.output_high);
    task.output_tokens = static_cast<int32_t>(
        std::clamp(length, static_cast<double>(c.output_low), static_cast<double>(c.output_high)));
    task.output_tokens = std::min(task.output_tokens, task.max_tokens);
  }
  return tasks;
}

OfferedWork offered_work(const std::vector<PlannedTask>& tasks, const LatencyModel& latency,
                         int32_t max_rows) {
  OfferedWork work;
  double steps = 0, context = 0, prefill = 0;
  for (const PlannedTask& task : tasks) {
    const double decode_steps = task.output_tokens - 1;
    steps += decode_steps;
    context += decode_steps * (task.prompt_tokens + task.output_tokens / 2.0);
    const double n = task.prompt_tokens;
    prefill += latency
                   .predict({.tokens = task.prompt_tokens,
                             .rows = 1,
                             .context = 0,
                             .chunk_work = n * n / 2,
                             .swap_bytes = 0,
                             .prefill_tokens = task.prompt_tokens})
                   .median;
  }
  const double count = static_cast<double>(tasks.size());
  work.mean_context = steps > 0 ? context / steps : 0;
  work.decode_1 = work.best_decode = latency.decode_step(1, work.mean_context);
  for (int32_t b = 2; b <= max_rows; ++b) {
    work.best_decode = std::min(work.best_decode, latency.decode_step(b, work.mean_context) / b);
  }
  work.prefill = prefill / count;
  work.decode = steps / count * work.best_decode;
  return work;
}

void set_arrivals(std::vector<PlannedTask>& tasks, const Options& options, double rate) {
  double t = 0;
  if (options.concurrent > 0) {
    for (PlannedTask& task : tasks) task.arrival = 0;
    return;
  }
  if (!options.intervals.empty()) {
    for (size_t i = 0; i < tasks.size(); ++i) {
      tasks[i].arrival = t;
      t += options.intervals[i % options.intervals.size()];
    }
    return;
  }
  Random random(options.seed, Part::arrivals);
  for (PlannedTask& task : tasks) task.arrival = t += random.exponential();
  const double stretch = static_cast<double>(tasks.size()) / rate / t;
  for (PlannedTask& task : tasks) task.arrival *= stretch;
}

TaskSpec make_spec(const PlannedTask& task, int32_t number, double slo_scale, uint64_t seed,
                   int32_t vocab) {
  const TaskClass& c = edge_classes()[static_cast<size_t>(task.class_index)];
  const auto scaled = [slo_scale](std::optional<double> target) {
    if (target) *target *= slo_scale;
    return target;
  };
  TaskSpec spec;
  Random random(seed, Part::tokens, static_cast<uint32_t>(number));
  spec.prompt.resize(static_cast<size_t>(task.prompt_tokens));
  for (int32_t& id : spec.prompt) id = random.whole(0, vocab - 1);
  spec.slo = {scaled(c.slo.ttft), scaled(c.slo.tpot), scaled(c.slo.deadline)};
  spec.utility = c.utility;
  spec.max_tokens = task.max_tokens;
  spec.class_name = c.name;
  spec.ignore_eos = true;  // it ends at its true length
  spec.true_output_tokens = task.output_tokens;
  spec.arrival = task.arrival;
  return spec;
}

}  // namespace slicellm::bench
