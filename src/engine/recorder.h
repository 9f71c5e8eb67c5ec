#pragma once

#include <mutex>
#include <utility>
#include <vector>

#include "slicellm/engine.h"

namespace slicellm {

// The event log and the step records until they are drained. The engine thread adds to a buffer of
// its own and hands it over once a step; any thread drains.
class Recorder {
 public:
  explicit Recorder(bool enabled) : enabled_(enabled) {}

  void add(double t, TaskId task, EventKind kind, int32_t value = 0) {
    if (enabled_) events_.push_back({t, task, kind, value});
  }
  void add(const StepRecord& step) {
    if (enabled_) steps_.push_back(step);
  }
  void flush() {
    if (events_.empty() && steps_.empty()) return;
    std::lock_guard lock(mutex_);
    shared_events_.insert(shared_events_.end(), events_.begin(), events_.end());
    shared_steps_.insert(shared_steps_.end(), steps_.begin(), steps_.end());
    events_.clear();
    steps_.clear();
  }
  std::vector<LogEvent> drain_events() {
    std::lock_guard lock(mutex_);
    return std::exchange(shared_events_, {});
  }
  std::vector<StepRecord> drain_steps() {
    std::lock_guard lock(mutex_);
    return std::exchange(shared_steps_, {});
  }

 private:
  const bool enabled_;
  std::vector<LogEvent> events_;
  std::vector<StepRecord> steps_;
  std::mutex mutex_;
  std::vector<LogEvent> shared_events_;
  std::vector<StepRecord> shared_steps_;
};

}  // namespace slicellm
