// scls over several instances (Cheng et al., arXiv 2406.13511): the central scheduler cuts outputs
// into slices, makes batches and offloads them; an instance gets one batch at a time, as tasks that
// arrive together, and runs it under the policy static, which takes all that waits when it is idle.
#include <algorithm>
#include <unordered_map>

#include "policy/json.h"
#include "policy/scls_scheduler.h"
#include "sim/dispatchers.h"

namespace slicellm {
namespace {

class SclsDispatcher final : public Dispatcher {
 public:
  SclsDispatcher(const SclsOptions& options, int32_t instances, const View& machine)
      : scheduler_(options, instances),
        machine_(machine),
        instances_(static_cast<size_t>(instances)) {
    scheduler_.times().seed(*machine.latency, machine.max_rows);
    machine_.latency = nullptr;
  }

  std::string name() const override { return "scls"; }

  void arrive(const DispatchTask& task) override {
    left_.emplace(task.number, task.max_tokens);
    scheduler_.add({task.number, task.prompt_tokens});
  }

  void returned(int32_t instance, const DispatchTask& task, bool ended) override {
    Instance& at = instances_[instance];
    if (ended) {
      left_.erase(task.number);
    } else {
      left_[task.number] = task.max_tokens - task.produced;
      scheduler_.add({task.number, task.prompt_tokens + task.produced});
    }
    if (--at.live > 0) return;
    scheduler_.returned(instance, at.predicted);
    early_returns_ += at.steps + 1 < scheduler_.options().slice;
  }

  void ran(int32_t instance, const StepRecord& step) override {
    Instance& at = instances_[instance];
    if (step.prefill_rows > 0 || step.padding_tokens > 0) {
      at.prefill_seconds += step.duration;
      return;
    }
    ServingTimes& times = scheduler_.times();
    if (at.steps == 0) times.observe_prefill(at.rows, at.length, at.prefill_seconds);
    times.observe_step(at.rows, at.length + at.steps++, step.duration);
  }

  std::vector<Dispatch> dispatch(double now) override {
    if (scheduler_.due() <= now) scheduler_.schedule(now, machine_);
    std::vector<Dispatch> sent;
    for (int32_t k = 0; k < static_cast<int32_t>(instances_.size()); ++k) {
      Instance& at = instances_[k];
      if (at.live > 0 || !scheduler_.has_batch(k)) continue;
      const SclsBatch batch = scheduler_.take(k);
      at = {.live = static_cast<int32_t>(batch.items.size()), .predicted = batch.seconds};
      at.rows = at.live;
      at.length = batch.items.back().length;
      for (const SclsItem& item : batch.items) {
        sent.push_back({k, item.key, std::min(scheduler_.options().slice, left_.at(item.key))});
      }
      ++batches_;
      rows_ += at.rows;
    }
    return sent;
  }

  double wake_at() const override { return scheduler_.due(); }

  std::string inspect() const override {
    JsonObject json;
    scheduler_.describe(json);
    json.add("batches", batches_).add("rows", rows_).add("early_returns", early_returns_);
    return json.text();
  }

 private:
  struct Instance {
    int32_t live = 0;      // tasks of its batch that have not returned
    double predicted = 0;  // seconds of its batch
    int32_t rows = 0, length = 0;
    int32_t steps = 0;  // decode steps so far
    double prefill_seconds = 0;
  };

  SclsScheduler scheduler_;
  View machine_;
  std::vector<Instance> instances_;
  std::unordered_map<int64_t, int32_t> left_;  // tokens to the cap of each task
  int64_t batches_ = 0, rows_ = 0, early_returns_ = 0;
};

}  // namespace

PolicyInfo scls_dispatch_info() {
  return {"scls", "Cheng et al., SCLS, arXiv 2406.13511",
          "Static batches of one slice of output, each to the instance with the least load; the "
          "instances' policy is static.",
          scls_parameters()};
}

std::unique_ptr<Dispatcher> make_scls_dispatcher(const Parameters& parameters, int32_t instances,
                                                 const View& machine) {
  return std::make_unique<SclsDispatcher>(scls_options(parameters), instances, machine);
}

}  // namespace slicellm
