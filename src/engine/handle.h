#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string_view>

#include "slicellm/engine.h"

namespace slicellm {

// A task's result as it grows: filled by the engine thread, read by any thread. Outlives the
// engine.
class TaskResultBox final : public TaskHandle {
 public:
  TaskResultBox(TaskId id, double arrival, int32_t prompt_tokens);

  TaskId id() const override { return id_; }
  TaskResult take(double timeout) override;
  bool wait_done(double timeout) override;
  TaskResult wait(double timeout) override;
  bool done() const override;
  void on_update(std::function<void()> callback) override;

  // Engine side. Nothing may follow `end`.
  void add(Token token, std::string_view text);
  void add_text(std::string_view text);
  void add_cached(int32_t tokens);
  void end(FinishReason reason, std::string error, double time);

 private:
  using Callback = std::shared_ptr<const std::function<void()>>;
  bool has_news() const {
    return result_.reason != FinishReason::none || result_.tokens.size() > taken_tokens_ ||
           result_.text.size() > taken_text_;
  }
  // Waits for `ready` up to `timeout` seconds; its value then.
  template <typename Ready>
  bool wait_for(std::unique_lock<std::mutex>& lock, double timeout, Ready ready);
  void notify(std::unique_lock<std::mutex>& lock);

  const TaskId id_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  TaskResult result_;
  size_t taken_tokens_ = 0, taken_text_ = 0;
  Callback callback_;
};

}  // namespace slicellm
