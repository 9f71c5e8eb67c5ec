#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "slicellm/engine.h"
#include "slicellm/policy.h"

namespace slicellm {

// A task as a dispatcher knows it. Never the true output length.
struct DispatchTask {
  int64_t number = 0;  // its place in the run
  double arrival = 0;  // seconds
  int32_t prompt_tokens = 1;
  int32_t max_tokens = 1;
  int32_t produced = 0;  // output tokens so far
};

// Runs a task on an instance for at most so many more tokens, on top of prompt + output so far.
// Fewer than its cap leaves make a slice: when it is over the task returns.
struct Dispatch {
  int32_t instance = 0;
  int64_t task = 0;
  int32_t max_tokens = 1;
};

// Decides which of several engines serves a task, and for how long: what a policy is to rows. It
// knows nothing of an engine's inside: to an instance a slice is a task of its own, which the
// instance's policy schedules. A deterministic state machine that reads no clock; called by one
// thread. Times never go back: all that happened at a time is told before `dispatch` at that time.
class Dispatcher {
 public:
  virtual ~Dispatcher() = default;
  virtual std::string name() const = 0;

  virtual void arrive(const DispatchTask& task) = 0;
  // What was sent to `instance` is over: the task has ended, or waits again with task.produced
  // tokens.
  virtual void returned(int32_t instance, const DispatchTask& task, bool ended) = 0;
  // A step of `instance` ended. Told before what it returned.
  virtual void ran(int32_t /*instance*/, const StepRecord& /*step*/) {}

  virtual std::vector<Dispatch> dispatch(double now) = 0;
  // When to be asked again though nothing happens; infinity for never.
  virtual double wake_at() const { return std::numeric_limits<double>::infinity(); }

  // A snapshot for people and tests, as JSON.
  virtual std::string inspect() const { return "{}"; }
};

std::vector<PolicyInfo> list_dispatchers();

// "round_robin", "least_loaded" or "scls:slice=64". `machine` tells the limits and the latency
// model of each instance; it is used during this call only. Throws Error(invalid_argument).
std::unique_ptr<Dispatcher> make_dispatcher(std::string_view text, int32_t instances,
                                            const View& machine);

}  // namespace slicellm
