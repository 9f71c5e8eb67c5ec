// scls: slice-level scheduling on one instance (Cheng et al., arXiv 2406.13511). The output is cut
// into slices of S tokens; tasks are served in static batches of one slice, made by the central
// scheduler. After its slice a task that has not ended drops its KV and waits again, with prompt +
// output as its input. Coefficients, lambda, gamma and S are our reading of the paper.
#include <optional>

#include "policy/json.h"
#include "policy/policies.h"
#include "policy/scls_scheduler.h"
#include "policy/static_batch.h"
#include "policy/step_builder.h"

namespace slicellm {
namespace {

class Scls : public Policy {
 public:
  explicit Scls(const SclsOptions& options) : state_{.scheduler = SclsScheduler(options, 1)} {}

  std::string name() const override { return "scls"; }

  void on(const TaskEvent& event, const View& view) override {
    if (event.kind == TaskEventKind::arrive) {
      state_.scheduler.add({event.slot, view.tasks[event.slot].prompt_len});
    } else if (!state_.batch.finish(event.slot)) {
      state_.scheduler.remove(event.slot);
    }
  }

  StepPlan plan(const View& view) override {
    StepBuilder step(view, view.max_rows);
    proposed_.reset();
    if (state_.running && state_.batch.ended()) {
      end_slice(step);
      if (!step.plan().empty()) return step.take();
    }
    if (scheduler().due() <= view.now) schedule(step);
    const bool running = proposed_ ? proposed_->running : state_.running;
    if (!running && scheduler().has_batch(0)) start_batch(view);
    const State& state = proposed_ ? *proposed_ : state_;
    if (state.running) {
      state.batch.plan(step);
    } else {
      step.wake_at(state.scheduler.due());
    }
    return step.take();
  }

  void commit(const StepPlan& plan, const StepOutcome& outcome, const View&) override {
    if (proposed_) state_ = std::move(*proposed_);
    proposed_.reset();
    if (!plan.runs()) return;
    StaticBatch& batch = state_.batch;
    ServingTimes& times = state_.scheduler.times();
    if (batch.decoding()) {
      times.observe_step(batch.rows(), batch.length() + batch.generated() - 1, outcome.duration);
    } else {
      state_.prefill_seconds += outcome.duration;
    }
    const bool was_decoding = batch.decoding();
    batch.commit(plan, outcome);
    if (!was_decoding && batch.decoding()) {
      times.observe_prefill(batch.rows(), batch.length(), state_.prefill_seconds);
    }
  }

  bool takes_drafts() const override { return false; }
  std::string inspect() const override {
    const State& s = state_;
    JsonObject json;
    s.scheduler.describe(json);
    json.add("running", s.batch.live());
    json.add("batches", s.batches).add("rows", s.rows).add("early_returns", s.early_returns);
    return json.text();
  }

 private:
  struct State {
    SclsScheduler scheduler;  // of slots
    StaticBatch batch = {};
    bool running = false;        // `batch` has started and not returned
    double predicted = 0;        // its seconds
    double prefill_seconds = 0;  // what its prefill took so far
    int64_t batches = 0, rows = 0, early_returns = 0;
  };

  State& change() {
    if (!proposed_) proposed_ = state_;
    return *proposed_;
  }
  const SclsScheduler& scheduler() const {
    return proposed_ ? proposed_->scheduler : state_.scheduler;
  }

  // The batch returns; who has not ended waits again, without KV.
  void end_slice(StepBuilder& step) {
    State& state = change();
    const std::vector<int32_t> unfinished = state.batch.live();
    for (int32_t slot : unfinished) {
      const TaskView& task = step.view().tasks[slot];
      if (task.kv != KvState::none) step.drop(slot);
      state.scheduler.add({slot, task.prompt_len + task.produced});
    }
    state.scheduler.returned(0, state.predicted);
    state.early_returns += state.batch.generated() < state.scheduler.options().slice;
    state.running = false;
    state.batch = StaticBatch();
  }

  void schedule(StepBuilder& step) {
    const View& view = step.view();
    SclsScheduler& scheduler = change().scheduler;
    const std::vector<SclsItem> pool = scheduler.pool();
    for (const SclsItem& item : pool) {
      const int32_t slot = static_cast<int32_t>(item.key);
      std::string why = never_runs(view.tasks[slot], view);
      if (why.empty()) continue;
      step.reject(slot, std::move(why));
      scheduler.remove(item.key);
    }
    if (scheduler.pool().empty()) return;
    if (!scheduler.times().seeded()) scheduler.times().seed(*view.latency, view.max_rows);
    scheduler.schedule(view.now, view);
  }

  void start_batch(const View& view) {
    State& state = change();
    const SclsBatch batch = state.scheduler.take(0);
    std::vector<int32_t> slots;
    for (const SclsItem& item : batch.items) slots.push_back(static_cast<int32_t>(item.key));
    state.batch = StaticBatch(slots, view, state.scheduler.options().slice);
    state.running = true;
    state.predicted = batch.seconds;
    state.prefill_seconds = 0;
    ++state.batches;
    state.rows += state.batch.rows();
  }

  State state_;
  std::optional<State> proposed_;  // the state that the last proposed plan leads to, if another
};

}  // namespace

PolicyInfo scls_info() {
  return {"scls", "Cheng et al., SCLS, arXiv 2406.13511",
          "Static batches of one slice of output, made by predicted serving time.",
          scls_parameters()};
}

std::unique_ptr<Policy> make_scls(const Parameters& parameters) {
  return std::make_unique<Scls>(scls_options(parameters));
}

}  // namespace slicellm
