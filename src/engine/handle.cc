#include "engine/handle.h"

#include <algorithm>
#include <chrono>

#include "slicellm/error.h"

namespace slicellm {

TaskResultBox::TaskResultBox(TaskId id, double arrival, int32_t prompt_tokens) : id_(id) {
  result_.id = id;
  result_.arrival = arrival;
  result_.prompt_tokens = prompt_tokens;
}

template <typename Ready>
bool TaskResultBox::wait_for(std::unique_lock<std::mutex>& lock, double timeout, Ready ready) {
  if (timeout < 0) {
    changed_.wait(lock, ready);
    return true;
  }
  const std::chrono::duration<double> seconds(std::min(timeout, 1e6));
  return changed_.wait_for(lock, seconds, ready);
}

TaskResult TaskResultBox::take(double timeout) {
  std::unique_lock lock(mutex_);
  wait_for(lock, timeout, [this] { return has_news(); });
  TaskResult news;
  news.id = result_.id;
  news.reason = result_.reason;
  news.error = result_.error;
  news.arrival = result_.arrival;
  news.finish_time = result_.finish_time;
  news.prompt_tokens = result_.prompt_tokens;
  news.cached_tokens = result_.cached_tokens;
  news.tokens.assign(result_.tokens.begin() + static_cast<std::ptrdiff_t>(taken_tokens_),
                     result_.tokens.end());
  news.text = result_.text.substr(taken_text_);
  taken_tokens_ = result_.tokens.size();
  taken_text_ = result_.text.size();
  return news;
}

bool TaskResultBox::wait_done(double timeout) {
  std::unique_lock lock(mutex_);
  return wait_for(lock, timeout, [this] { return result_.reason != FinishReason::none; });
}

TaskResult TaskResultBox::wait(double timeout) {
  const bool ended = wait_done(timeout);
  std::lock_guard lock(mutex_);
  if (!ended) {
    throw Error(ErrorKind::state, "task " + std::to_string(id_), "no end in time",
                "its end within " + std::to_string(timeout) + " s");
  }
  return result_;
}

bool TaskResultBox::done() const {
  std::lock_guard lock(mutex_);
  return result_.reason != FinishReason::none;
}

void TaskResultBox::on_update(std::function<void()> callback) {
  Callback shared;
  if (callback) shared = std::make_shared<const std::function<void()>>(std::move(callback));
  std::unique_lock lock(mutex_);
  callback_ = shared;
  if (!shared || !has_news()) return;
  lock.unlock();
  (*shared)();
}

void TaskResultBox::notify(std::unique_lock<std::mutex>& lock) {
  const Callback callback = callback_;
  lock.unlock();
  changed_.notify_all();
  if (callback) (*callback)();
}

void TaskResultBox::add(Token token, std::string_view text) {
  std::unique_lock lock(mutex_);
  result_.tokens.push_back(std::move(token));
  result_.text += text;
  notify(lock);
}

void TaskResultBox::add_text(std::string_view text) {
  if (text.empty()) return;
  std::unique_lock lock(mutex_);
  result_.text += text;
  notify(lock);
}

void TaskResultBox::add_cached(int32_t tokens) {
  const std::lock_guard lock(mutex_);
  result_.cached_tokens += tokens;
}

void TaskResultBox::end(FinishReason reason, std::string error, double time) {
  std::unique_lock lock(mutex_);
  result_.reason = reason;
  result_.error = std::move(error);
  result_.finish_time = time;
  notify(lock);
}

}  // namespace slicellm
