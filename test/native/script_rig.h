#pragma once

#include <cmath>
#include <cstdio>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "toy_engine.h"

// An engine on the toy executor whose policy is a function. Time is virtual: a step takes 10 ms +
// 1 ms a token.
namespace slicellm::test {

// Runs a function as its plan.
class ScriptPolicy : public Policy {
 public:
  explicit ScriptPolicy(std::function<StepPlan(const View&)> plan) : plan_(std::move(plan)) {}
  std::string name() const override { return "script"; }
  void on(const TaskEvent& event, const View& view) override {
    const TaskView& task = view.tasks[event.slot];
    log.push_back((event.kind == TaskEventKind::arrive ? "arrive " : "finish ") +
                  std::to_string(task.id) + " " + to_string(task.ended));
    if (event.kind == TaskEventKind::finish) {
      CHECK(task.kv == KvState::none && task.blocks == 0);
      for (int32_t slot : view.live) CHECK(slot != event.slot);
    }
  }
  StepPlan plan(const View& view) override { return plan_(view); }
  void commit(const StepPlan&, const StepOutcome& outcome, const View& view) override {
    log.push_back("commit " + std::to_string(outcome.token_slots.size()));
    for (int32_t slot : outcome.token_slots) CHECK(view.tasks[slot].id > 0);
  }
  std::string inspect() const override { return "{\"calls\":" + std::to_string(log.size()) + "}"; }
  std::vector<std::string> log;

 private:
  std::function<StepPlan(const View&)> plan_;
};

// Whole prompts as they come, and everything decodes.
inline StepPlan run_all(const View& view) {
  StepPlan plan;
  for (int32_t slot : view.live) {
    const TaskView& task = view.tasks[slot];
    if (task.ready_to_decode()) {
      plan.decode.push_back(slot);
    } else {
      plan.prefill.push_back({slot, task.pending()});
    }
  }
  return plan;
}

struct Rig {
  explicit Rig(std::function<StepPlan(const View&)> plan = run_all, EngineOptions options = {},
               int32_t blocks = 32, int32_t host_blocks = 16) {
    executor = std::make_shared<ToyExecutor>(blocks, host_blocks, 4);
    clock = make_virtual_clock();
    auto owned = std::make_unique<ScriptPolicy>(std::move(plan));
    policy = owned.get();
    engine = Engine::make(executor, std::move(owned), toy_latency(), clock, options);
  }
  std::string events() {
    std::string text;
    for (const LogEvent& e : engine->drain_events()) {
      char line[64];
      std::snprintf(line, sizeof line, "%g %lld %s %d\n", std::round(e.t * 1e6) / 1e3,
                    static_cast<long long>(e.task), to_string(e.kind),
                    e.kind == EventKind::token ? 0 : e.value);
      text += line;
    }
    return text;
  }
  std::shared_ptr<ToyExecutor> executor;
  std::shared_ptr<Clock> clock;
  ScriptPolicy* policy;
  std::unique_ptr<Engine> engine;
};

inline TaskSpec make_task(std::vector<int32_t> prompt, int32_t max_tokens,
                          std::optional<double> arrival = std::nullopt) {
  TaskSpec task;
  task.prompt = std::move(prompt);
  task.max_tokens = max_tokens;
  task.arrival = arrival;
  return task;
}

inline std::vector<int32_t> ids(const TaskResult& result) {
  std::vector<int32_t> all;
  for (const Token& token : result.tokens) all.push_back(token.id);
  return all;
}

}  // namespace slicellm::test
