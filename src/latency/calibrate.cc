// Measures a model on this machine: real steps through the executor, interleaved, their medians
// fitted.
#include <algorithm>
#include <chrono>
#include <cstdio>

#include "latency/piecewise_model.h"
#include "slicellm/error.h"
#include "slicellm/executor.h"
#include "slicellm/model.h"

namespace slicellm {
namespace {

constexpr int32_t kMaxRows = 64;
constexpr size_t kReadPoolBytes = 64 << 20;  // of K and V that decode rows look back on
constexpr int32_t kSwapBlocks = 16;

// A kind of step to measure: decode rows of one context, one prefill chunk, or a swap.
struct Point {
  int32_t decode_rows = 0;
  int32_t chunk = 0;
  int32_t past = 0;  // tokens in KV before the step, of each row or of the chunk
  bool swap = false;
  std::vector<double> seconds = {};

  double median() const {
    std::vector<double> sorted = seconds;
    const auto middle = sorted.begin() + static_cast<std::ptrdiff_t>(sorted.size() / 2);
    std::nth_element(sorted.begin(), middle, sorted.end());
    return *middle;
  }
};

std::vector<Point> make_points(const ModelSpec& spec) {
  std::vector<Point> points;
  auto add = [&](Point point) {
    if (point.past + std::max(point.chunk, 1) <= spec.max_positions) points.push_back(point);
  };
  for (int32_t rows : {1, 2, 4, 8, 12, 16, 24, 32, 48, 64}) add({.decode_rows = rows, .past = 16});
  for (int32_t rows : {1, 4, 8, 16, 32}) add({.decode_rows = rows, .past = 512});
  for (int32_t tokens : {16, 32, 64, 128, 256, 512, 1024, 2048}) add({.chunk = tokens});
  if (spec.prefill_divisible) {
    for (int32_t tokens : {32, 128, 512}) add({.chunk = tokens, .past = 512});
  }
  // Cheap ones first: the first round learns what the costly ones may cost.
  std::stable_sort(points.begin(), points.end(), [](const Point& a, const Point& b) {
    return a.decode_rows + a.chunk < b.decode_rows + b.chunk;
  });
  points.push_back({.swap = true});
  return points;
}

class Rig {
 public:
  explicit Rig(const std::shared_ptr<Model>& model)
      : spec_(model->spec()), layout_(model->kv_layout()) {
    const int32_t longest = std::min(spec_.max_positions, 2048 + 512);
    write_blocks_ = std::max(kMaxRows, longest / layout_.block_tokens + 1);
    read_blocks_ =
        static_cast<int32_t>(std::clamp<size_t>(kReadPoolBytes / layout_.block_bytes(), 1, 4096));
    executor_ = make_executor(model, write_blocks_ + read_blocks_, kSwapBlocks);
    for (TaskId id = 0; id < kMaxRows; ++id) {
      ExecutorTask task;
      task.id = id;
      executor_->add_task(task);
    }
  }

  double measure(const Point& point) {
    const Ticket ticket = executor_->submit(make_batch(point));
    return executor_->wait(ticket).duration;
  }

  StepFeatures features(const Point& point) const {
    StepFeatures f;
    if (point.swap) {
      f.swap_bytes = static_cast<double>(layout_.block_bytes()) * kSwapBlocks;
    } else if (point.chunk > 0) {
      f.tokens = f.prefill_tokens = point.chunk;
      f.rows = 1;
      f.chunk_work = point.chunk * (point.past + 0.5 * point.chunk);
    } else {
      f.tokens = f.rows = point.decode_rows;
      f.context = static_cast<double>(point.decode_rows) * point.past;
    }
    return f;
  }

 private:
  Batch make_batch(const Point& point) const {
    Batch batch;
    if (point.swap) {
      for (int32_t i = 0; i < kSwapBlocks; ++i) {
        batch.copies.push_back({.to_host = true, .device_block = i, .host_block = i});
      }
    } else if (point.chunk > 0) {
      add_sequence(batch, 0, point.chunk, point.past, 0);
    } else {
      for (int32_t row = 0; row < point.decode_rows; ++row) {
        add_sequence(batch, row, 1, point.past, row);
      }
    }
    return batch;
  }

  // Rows write to blocks of their own (from `own` on) and look back on the read pool: distinct
  // memory as far as it reaches, so that caches help no more than they will later.
  void add_sequence(Batch& batch, TaskId task, int32_t count, int32_t past, int32_t own) const {
    BatchSequence& s = batch.sequences.emplace_back();
    s.task = task;
    s.begin = static_cast<int32_t>(batch.tokens.size());
    s.count = count;
    s.past = past;
    s.prompt_len = count > 1 ? past + count : past;
    s.sample = true;
    const int32_t blocks = (past + count + layout_.block_tokens - 1) / layout_.block_tokens;
    const int32_t first_written = past / layout_.block_tokens;
    for (int32_t i = 0; i < blocks; ++i) {
      s.blocks.push_back(i >= first_written
                             ? own + i - first_written
                             : write_blocks_ + (own * first_written + i) % read_blocks_);
    }
    for (int32_t i = 0; i < count; ++i) {
      batch.tokens.push_back(
          static_cast<int32_t>((int64_t{7919} * (past + i) + own) % spec_.vocab));
    }
  }

  const ModelSpec& spec_;
  const KvLayout layout_;
  int32_t write_blocks_ = 0, read_blocks_ = 0;
  std::shared_ptr<Executor> executor_;
};

}  // namespace

std::unique_ptr<LatencyModel> calibrate(std::shared_ptr<Model> model, double seconds,
                                        const std::function<void(uint64_t, uint64_t)>& progress) {
  if (!(seconds > 0 && seconds <= 3600)) {
    throw Error(ErrorKind::invalid_argument, "seconds", std::to_string(seconds),
                "a number above 0 and at most 3600");
  }
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  auto elapsed = [start] { return std::chrono::duration<double>(Clock::now() - start).count(); };

  Rig rig(model);
  std::vector<Point> points = make_points(model->spec());
  rig.measure(points.front());  // first use: pages, caches, threads
  double per_token = 0;         // of the largest step measured so far
  for (bool first = true; first || elapsed() < seconds; first = false) {
    for (Point& point : points) {
      const int32_t tokens = point.decode_rows + point.chunk;
      const double expected = !point.seconds.empty() ? point.median() : per_token * tokens;
      // A step that would take more than its share of the time is not worth it; the smallest are
      // measured whatever they take.
      const bool needed = first && tokens <= 16;
      if (!needed && (expected > seconds / 5 || elapsed() + expected > seconds)) continue;
      point.seconds.push_back(rig.measure(point));
      if (tokens > 0) per_token = point.seconds.back() / tokens;
      if (progress) {
        progress(static_cast<uint64_t>(std::min(elapsed(), seconds) * 1000),
                 static_cast<uint64_t>(seconds * 1000));
      }
    }
  }

  std::vector<LatencySample> samples;
  int64_t steps = 0;
  for (const Point& point : points) {
    if (point.seconds.empty()) continue;
    samples.push_back({rig.features(point), std::max(point.median(), 1e-9)});
    steps += static_cast<int64_t>(point.seconds.size());
  }
  char measured[64];
  std::snprintf(measured, sizeof measured, "; %lld steps in %.1f s", static_cast<long long>(steps),
                elapsed());
  auto fitted = std::make_unique<PiecewiseModel>(
      samples, model->fingerprint() + "; " + describe(model->placement()) + measured);

  // The spread of single steps, not of the medians, is what the quantile has to cover.
  std::vector<double> ratios;
  for (const Point& point : points) {
    const double predicted = fitted->predict(rig.features(point)).median;
    for (double value : point.seconds) {
      if (predicted > 0) ratios.push_back(value / predicted);
    }
  }
  std::sort(ratios.begin(), ratios.end());
  if (!ratios.empty()) fitted->set_quantile(ratios[(ratios.size() * 95 + 99) / 100 - 1]);
  if (progress) {
    progress(static_cast<uint64_t>(seconds * 1000), static_cast<uint64_t>(seconds * 1000));
  }
  return fitted;
}

}  // namespace slicellm
