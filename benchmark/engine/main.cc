// What the engine costs beside policy and forward pass, and what the latency model costs, as JSON
// on standard output.
//
//   engine_benchmark [MODEL] [--steps N] [--threads N] [--commit TEXT]
//
// Decode steps of 8 and 64 tasks under orca, with text, a stop string and a streaming reader a task
// of which every eighth waits on its handle. Without MODEL the executor computes nothing, so that
// the loop's code stays in the caches; with MODEL every step evicts it. Times are wall-clock times:
// on a machine with other work look at the median.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include <time.h>

#include "slicellm/engine.h"
#include "slicellm/error.h"
#include "slicellm/model.h"

namespace {

using namespace slicellm;

constexpr int32_t kVocab = 32000;
constexpr int32_t kPrompt = 32;

// Takes no time; token after token.
class NullExecutor final : public Executor {
 public:
  std::string name() const override { return "null"; }
  const KvLayout& kv_layout() const override { return layout_; }
  int32_t num_blocks() const override { return 1 << 20; }
  int32_t num_host_blocks() const override { return 0; }
  void add_task(const ExecutorTask&) override {}
  void remove_task(TaskId) override {}
  Ticket submit(Batch batch) override {
    batch_ = std::move(batch);
    return 0;
  }
  StepResult wait(Ticket) override {
    StepResult result;
    result.rows.reserve(batch_.sequences.size());
    for (const BatchSequence& s : batch_.sequences) {
      RowResult& row = result.rows.emplace_back();
      row.task = s.task;
      row.token = (s.past * 7919 + static_cast<int32_t>(s.task)) % kVocab;
    }
    result.duration = 1e-6;
    return result;
  }

 private:
  KvLayout layout_{.layers = 1, .kv_heads = 1, .head_dim = 1};
  Batch batch_;
};

std::unique_ptr<LatencyModel> make_latency() {
  std::vector<LatencySample> samples;
  for (int32_t b : {1, 2, 4, 8, 16, 32, 64}) {
    for (double context : {16.0, 512.0}) {
      samples.push_back({{.tokens = b, .rows = b, .context = b * context}, 0.02 + 1e-3 * b});
    }
  }
  return fit_latency_model(samples, "made up");
}

std::string percentiles(std::vector<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  auto at = [&seconds](double q) {
    return 1e6 * seconds[static_cast<size_t>(q * static_cast<double>(seconds.size() - 1))];
  };
  char text[96];
  std::snprintf(text, sizeof text, "{\"p50\": %.2f, \"p99\": %.2f}", at(0.5), at(0.99));
  return text;
}

std::string measure_engine(std::shared_ptr<Executor> executor, int32_t vocab, int32_t rows,
                           int32_t steps) {
  EngineOptions options;
  options.max_rows = rows;
  options.vocab = vocab;
  for (int32_t id = 0; id < vocab; ++id) {
    options.token_bytes.push_back(" t" + std::to_string(id));
  }
  const std::string policy = "orca:max_batch=" + std::to_string(rows);
  const std::string name = executor->name();
  auto engine = Engine::make(std::move(executor), make_policy(policy), make_latency(),
                             make_steady_clock(), options);
  std::vector<TaskSpec> tasks(static_cast<size_t>(rows));
  for (TaskSpec& task : tasks) {
    for (int32_t i = 0; i < kPrompt; ++i) task.prompt.push_back((i * 31) % vocab);
    task.max_tokens = steps;
    task.ignore_eos = true;
    task.stop = {"never seen"};
  }
  auto handles = engine->submit_all(std::move(tasks));
  std::vector<std::thread> readers;
  for (size_t i = 0; i < handles.size(); i += 8) {
    readers.emplace_back([&handle = *handles[i]] {
      while (handle.take(-1).reason == FinishReason::none) {
      }
    });
  }
  for (std::thread& reader : readers) reader.join();
  engine->wait_idle();
  std::vector<double> overhead, plan, duration;
  for (const StepRecord& step : engine->drain_steps()) {
    if (step.decode_rows != rows) continue;
    overhead.push_back(step.overhead_seconds);
    plan.push_back(step.plan_seconds);
    duration.push_back(step.duration);
  }
  return "{\"executor\": \"" + name + "\", \"rows\": " + std::to_string(rows) +
         ", \"steps\": " + std::to_string(overhead.size()) +
         ", \"overhead_us\": " + percentiles(overhead) + ", \"policy_us\": " + percentiles(plan) +
         ", \"step_us\": " + percentiles(duration) + "}";
}

// CPU time of this thread: what the code costs, whatever else the machine does meanwhile.
double cpu_seconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

std::string measure_latency() {
  constexpr int kCalls = 200000;
  auto model = make_latency();
  double sum = 0;
  double start = cpu_seconds();
  for (int i = 0; i < kCalls; ++i) {
    sum += model->predict({.tokens = i % 600, .rows = i % 64, .context = 100.0 * i}).quantile;
  }
  const double predict = (cpu_seconds() - start) / kCalls;
  start = cpu_seconds();
  for (int i = 0; i < kCalls; ++i) {
    const int32_t b = 1 + i % 64;
    model->observe({.tokens = b, .rows = b, .context = 100.0 * b}, 0.021 + 1.1e-3 * b);
  }
  const double observe = (cpu_seconds() - start) / kCalls;
  char text[96];
  std::snprintf(text, sizeof text, "{\"predict_ns\": %.1f, \"observe_ns\": %.1f%s}", predict * 1e9,
                observe * 1e9, sum > 0 ? "" : ", \"sum\": 0");
  return text;
}

int run(int argc, char** argv) {
  std::string path, commit;
  int32_t steps = 2000;
  int threads = 0;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag.rfind("--", 0) != 0) {
      path = flag;
    } else if (i + 1 == argc) {
      std::fprintf(stderr, "engine_benchmark: %s: no value\n", flag.c_str());
      return 2;
    } else if (flag == "--steps") {
      steps = std::max(2, std::atoi(argv[++i]));
    } else if (flag == "--threads") {
      threads = std::atoi(argv[++i]);
    } else if (flag == "--commit") {
      commit = argv[++i];
    } else {
      std::fprintf(stderr, "engine_benchmark: %s: unknown\n", flag.c_str());
      return 2;
    }
  }
  std::string results;
  for (int32_t rows : {8, 64}) {
    results += "    " + measure_engine(std::make_shared<NullExecutor>(), kVocab, rows, steps);
    results += ",\n";
  }
  std::string device = "none";
  if (!path.empty()) {
    auto model = Model::load(path, make_cpu_device({.threads = threads, .isa = ""}), {});
    device = model->device().describe();
    for (int32_t rows : {8, 64}) {
      const int32_t count = std::min(steps, 60);
      const int32_t blocks = rows * ((kPrompt + count) / model->kv_layout().block_tokens + 1);
      results += "    " +
                 measure_engine(make_executor(model, blocks, 0), model->spec().vocab, rows, count);
      results += ",\n";
    }
  }
  results.erase(results.size() - 2);
  std::printf(
      "{\n  \"command\": \"engine_benchmark\", \"commit\": \"%s\", \"device\": \"%s\",\n"
      "  \"latency_model\": %s,\n  \"results\": [\n%s\n  ]\n}\n",
      commit.c_str(), device.c_str(), measure_latency().c_str(), results.c_str());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "engine_benchmark: %s\n", e.what());
    return 2;
  }
}
