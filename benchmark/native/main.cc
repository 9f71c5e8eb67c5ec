// The native benchmark: `./benchmark -p MODEL --slice --poisson`.
#include <algorithm>
#include <cstdio>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "options.h"
#include "report.h"
#include "slicellm/clock.h"
#include "slicellm/engine.h"
#include "slicellm/error.h"
#include "slicellm/executor.h"
#include "slicellm/format.h"
#include "slicellm/latency_model.h"
#include "slicellm/model.h"
#include "slicellm/ops.h"
#include "slicellm/policy.h"
#include "workload.h"

namespace slicellm::bench {
namespace {

constexpr double kCalibrationSeconds = 4;
constexpr double kPaperDecodeSeconds = 0.014;  // l(1) of the SLICE paper's GPU
constexpr int32_t kTasks = 60, kTestTasks = 12;
constexpr int32_t kSample = 4096;  // tasks that stand for the workload's mean

std::shared_ptr<Model> load(const Options& options) {
  ModelOptions model_options;
  if (options.dtype != "auto") {
    model_options.dtype = parse_dtype(options.dtype);
    model_options.dtype_auto = false;
  }
  std::shared_ptr<Device> device = make_cpu_device({.threads = options.threads, .isa = ""});
  return Model::load(options.path, device, model_options);
}

// Blocks so that every task may grow to the longest of the workload, within what memory allows.
int32_t kv_blocks(const Model& model, const std::vector<TaskSpec>& specs) {
  size_t longest = 0;
  for (const TaskSpec& spec : specs) {
    longest = std::max(longest, spec.prompt.size() + static_cast<size_t>(spec.max_tokens));
  }
  const KvLayout layout = model.kv_layout();
  const auto block_tokens = static_cast<size_t>(layout.block_tokens);
  const size_t each = (longest + block_tokens - 1) / block_tokens + 1;
  const size_t fit = model.device().free_memory() / 2 / layout.block_bytes();
  return static_cast<int32_t>(std::max(std::min(each * specs.size(), fit), each));
}

struct Run {
  std::vector<TaskResult> results;
  std::vector<StepRecord> steps;
};

Run run(const std::shared_ptr<Model>& model, const LatencyModel& latency, const std::string& policy,
        const std::vector<TaskSpec>& specs, int32_t batch) {
  const int32_t blocks = kv_blocks(*model, specs);
  EngineOptions options;
  options.max_rows = batch;
  options.prefill_divisible = model->spec().prefill_divisible;
  options.vocab = model->spec().vocab;
  options.eos_ids = model->spec().eos_ids;
  const std::unique_ptr<Engine> engine =
      Engine::make(make_executor(model, blocks, blocks), make_policy(policy), latency.clone(),
                   make_steady_clock(), options);
  Run run;
  for (const auto& handle : engine->submit_all(specs)) run.results.push_back(handle->wait(-1));
  engine->check_integrity();
  run.steps = engine->drain_steps();
  engine->close();
  return run;
}

std::string config_json(const Options& options, const Model& model, double rate, double slo_scale,
                        const OfferedWork& work) {
  return "{\"model\": " + json_string(options.path) + ", \"dtype\": " + json_string(options.dtype) +
         ", \"device\": " + json_string(model.device().describe()) +
         ", \"threads\": " + std::to_string(model.device().threads()) +
         ", \"seed\": " + std::to_string(options.seed) + ", \"workload\": \"edge\"" +
         ", \"rate\": " + std::to_string(rate) +
         ", \"saturation\": " + std::to_string(work.saturation()) +
         ", \"slo_scale\": " + std::to_string(slo_scale) +
         ", \"batch\": " + std::to_string(options.batch) + ", \"driver\": \"native\"}";
}

int benchmark(const Options& options) {
  for (const std::string& policy : options.policies) make_policy(policy);  // refused before loading
  const std::shared_ptr<Model> model = load(options);
  std::printf("%s on %s\ncalibrating ...\n", options.path.c_str(),
              model->device().describe().c_str());
  std::fflush(stdout);
  const std::unique_ptr<LatencyModel> latency = calibrate(model, kCalibrationSeconds, {});

  const OfferedWork work =
      offered_work(draw_tasks(kSample, 0, options.limit), *latency, options.batch);
  const double rate = options.rate > 0 ? options.rate : options.load * work.saturation();
  const double slo_scale =
      options.slo_scale > 0 ? options.slo_scale : work.decode_1 / kPaperDecodeSeconds;
  int32_t count = options.test_mode ? kTestTasks : kTasks;
  if (options.concurrent > 0) count = options.concurrent;
  if (options.total_tasks > 0) count = options.total_tasks;
  std::vector<PlannedTask> tasks = draw_tasks(count, options.seed, options.limit);
  set_arrivals(tasks, options, rate);
  std::vector<TaskSpec> specs;
  for (const PlannedTask& task : tasks) {
    specs.push_back(make_spec(task, static_cast<int32_t>(specs.size()), slo_scale, options.seed,
                              model->spec().vocab));
    const int32_t needed = task.prompt_tokens + task.max_tokens;
    if (needed > model->spec().max_positions) {
      throw Error(ErrorKind::invalid_argument, "-l",
                  "a task of " + std::to_string(needed) + " tokens",
                  "at most " + std::to_string(model->spec().max_positions) +
                      ", the model's context (-l caps new tokens)");
    }
  }
  std::printf("edge: %d tasks, seed %llu, %.3g tasks/s = %.2fx saturation, targets x %.3g\n", count,
              static_cast<unsigned long long>(options.seed), rate, rate / work.saturation(),
              slo_scale);
  std::printf(
      "saturation %.3g tasks/s: a task's prefill takes %.0f ms, its decode %.0f ms at best; "
      "l(1) = %.1f ms at %.0f tokens of context\n",
      work.saturation(), 1e3 * work.prefill, 1e3 * work.decode, 1e3 * work.decode_1,
      work.mean_context);

  std::vector<std::pair<std::string, Metrics>> metrics;
  for (const std::string& policy : options.policies) {
    std::printf("running %s ...\n", policy.c_str());
    std::fflush(stdout);
    const Run done = run(model, *latency, policy, specs, options.batch);
    if (options.test_mode) print_tokens(specs, done.results);
    metrics.emplace_back(policy, compute(specs, done.results, done.steps));
  }
  print_table(metrics);
  if (!options.save_result.empty()) {
    write_result(options.save_result, config_json(options, *model, rate, slo_scale, work), metrics);
  }
  return 0;
}

}  // namespace
}  // namespace slicellm::bench

int main(int argc, char** argv) {
  using namespace slicellm;
  try {
    const bench::Options options = bench::parse_options(argc, argv);
    if (options.help) {
      std::fputs(bench::kHelp, stdout);
      return 0;
    }
    return bench::benchmark(options);
  } catch (const Error& error) {
    std::fprintf(stderr, "benchmark: %s\n", error.what());
    return error.kind() == ErrorKind::resource || error.kind() == ErrorKind::state ? 1 : 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "benchmark: %s\n", error.what());
    return 1;
  }
}
