#pragma once

#include <algorithm>
#include <limits>
#include <memory>
#include <utility>

#include "engine/loop.h"
#include "slicellm/simulation.h"

namespace slicellm {

// An engine's loop with a virtual clock of its own, as one of several in a run. What a step did is
// in the loop's log at once, but belongs to the time when the step ends: `next`.
class Instance {
 public:
  // `options` must outlive the instance.
  Instance(SimInstance parts, const EngineOptions& options)
      : clock_(make_virtual_clock()),
        length_listener_(parts.policy->length_listener()),
        loop_(std::move(parts.executor), std::move(parts.policy), std::move(parts.belief), clock_,
              options) {}

  Loop& loop() { return loop_; }
  LengthListener* length_listener() { return length_listener_; }  // the policy's; may be null
  // When to read the log and iterate; infinity while nothing can happen.
  double next() const { return next_; }

  // A task comes at `now`, whenever it arrived.
  void enqueue(std::unique_ptr<TaskState> task, double now) {
    loop_.enqueue(std::move(task));
    next_ = std::min(next_, std::max(now, clock_->now()));
  }

  // At next(), or later after an enqueue.
  void iterate(double now) {
    clock_->advance_to(now);
    const double wake = loop_.iterate();
    // Who ended without a step is told at once.
    next_ = loop_.ended().empty() ? std::max(wake, clock_->now()) : clock_->now();
    loop_.recorder().flush();
  }

 private:
  std::shared_ptr<Clock> clock_;
  LengthListener* length_listener_;
  Loop loop_;
  double next_ = std::numeric_limits<double>::infinity();
};

}  // namespace slicellm
