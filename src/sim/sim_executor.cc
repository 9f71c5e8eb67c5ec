#include <algorithm>
#include <cmath>
#include <deque>
#include <numbers>
#include <unordered_map>

#include "engine/sampling.h"
#include "slicellm/error.h"
#include "slicellm/simulation.h"

namespace slicellm {
namespace {

// What the latency model wants to know of a batch. A chunk of one token that ends a recompute looks
// like a decode row here, and costs the same.
StepFeatures features_of(const Batch& batch, double block_bytes) {
  StepFeatures f;
  for (const BatchSequence& s : batch.sequences) {
    f.tokens += s.count;
    f.rows += s.sample;
    if (s.count == 1 && s.past >= s.prompt_len) {
      f.context += s.past;
    } else {
      f.prefill_tokens += s.count;
      f.chunk_work += s.count * (s.past + 0.5 * s.count);
    }
  }
  f.swap_bytes = block_bytes * static_cast<double>(batch.copies.size());
  return f;
}

// A standard normal number that is a function of its arguments only (Box and Muller, 1958).
double normal_at(uint64_t seed, uint64_t position) {
  const double radius = std::sqrt(-2 * std::log(1 - uniform_at(seed, 2 * position)));
  return radius * std::cos(2 * std::numbers::pi * uniform_at(seed, 2 * position + 1));
}

void check_residuals(const SimMachine& machine) {
  const std::vector<double>& r = machine.residuals;
  if (r.empty()) return;
  const bool ascend =
      r.front() > 0 && std::isfinite(r.back()) && std::is_sorted(r.begin(), r.end());
  if (r.size() < 2 || !ascend || machine.jitter > 0) {
    throw Error(
        ErrorKind::invalid_argument, "residuals",
        std::to_string(r.size()) + " numbers and a jitter of " + std::to_string(machine.jitter),
        "at least two numbers above 0 that ascend, and no jitter");
  }
}

// The value at share `u` in [0, 1) of quantiles at equal steps, linear between them.
double quantile_of(const std::vector<double>& quantiles, double u) {
  const double place = u * static_cast<double>(quantiles.size() - 1);
  const size_t i = static_cast<size_t>(place);
  return std::lerp(quantiles[i], quantiles[i + 1], place - static_cast<double>(i));
}

class SimExecutor final : public Executor {
 public:
  SimExecutor(std::unique_ptr<LatencyModel> truth, const SimMachine& machine)
      : truth_(std::move(truth)), machine_(machine) {
    if (!(machine.jitter >= 0 && machine.jitter <= 1)) {
      throw Error(ErrorKind::invalid_argument, "jitter", std::to_string(machine.jitter),
                  "a number from 0 to 1");
    }
    check_residuals(machine);
    if (machine.blocks < 1 || machine.host_blocks < 0 || machine.kv.block_tokens < 1) {
      throw Error(ErrorKind::invalid_argument, "kv blocks",
                  std::to_string(machine.blocks) + " and " + std::to_string(machine.host_blocks),
                  "at least one on the device and none or more in host memory");
    }
  }

  std::string name() const override { return "sim"; }
  const KvLayout& kv_layout() const override { return machine_.kv; }
  int32_t num_blocks() const override { return machine_.blocks; }
  int32_t num_host_blocks() const override { return machine_.host_blocks; }

  void add_task(const ExecutorTask& task) override {
    left_.emplace(task.id, task.true_output_tokens);
  }
  void remove_task(TaskId id) override { left_.erase(id); }
  bool can_chain(TaskId) const override { return true; }

  Ticket submit(Batch batch) override {
    StepResult result;
    const StepFeatures features = features_of(batch, static_cast<double>(block_bytes_));
    result.duration = truth_->predict(features).median;
    if (machine_.jitter > 0) {
      result.duration *= std::exp(machine_.jitter * normal_at(machine_.seed, steps_));
    }
    if (!machine_.residuals.empty()) {
      result.duration *= quantile_of(machine_.residuals, uniform_at(machine_.seed, steps_));
    }
    for (const BatchSequence& s : batch.sequences) {
      if (!s.sample || s.task == kNoTask) continue;
      int32_t& left = left_.at(s.task);
      const bool ended = left == 1;
      if (left > 0) --left;
      result.rows.push_back({.task = s.task, .ended = ended, .top_logprobs = {}});
    }
    results_.push_back(std::move(result));
    return static_cast<Ticket>(steps_++);
  }

  StepResult wait(Ticket) override {
    StepResult result = std::move(results_.front());
    results_.pop_front();
    return result;
  }

 private:
  const std::unique_ptr<LatencyModel> truth_;
  const SimMachine machine_;
  const size_t block_bytes_ = machine_.kv.block_bytes();
  std::unordered_map<TaskId, int32_t> left_;  // tokens to the true end; 0 = none known
  std::deque<StepResult> results_;
  uint64_t steps_ = 0;
};

}  // namespace

std::shared_ptr<Executor> make_sim_executor(std::unique_ptr<LatencyModel> truth,
                                            const SimMachine& machine) {
  return std::make_shared<SimExecutor>(std::move(truth), machine);
}

}  // namespace slicellm
