#include "slicellm/engine.h"

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <future>
#include <mutex>
#include <thread>
#include <unordered_map>

#include "engine/loop.h"
#include "slicellm/error.h"

namespace slicellm {
namespace {

constexpr size_t kMaxClasses = 65536;
constexpr double kLongestWait = 3600;  // seconds; then the loop looks again

class EngineImpl final : public Engine {
 public:
  EngineImpl(std::shared_ptr<Executor> executor, std::unique_ptr<Policy> policy,
             std::unique_ptr<LatencyModel> latency, std::shared_ptr<Clock> clock,
             const EngineOptions& options)
      : clock_(clock),
        options_(options),
        loop_(std::move(executor), std::move(policy), std::move(latency), clock, options_) {
    stats_ = loop_.stats();
    std::lock_guard lock(mutex_);  // the loop waits until its id is known
    thread_ = std::thread([this] { main(); });
    loop_id_ = thread_.get_id();
  }
  ~EngineImpl() override { close(); }

  std::shared_ptr<TaskHandle> submit(TaskSpec task) override {
    check(task);
    std::unique_lock lock(mutex_);
    const double now = clock_->now();
    require_open(1);
    const double arrival = task.arrival.value_or(now);
    auto handle = accept(std::move(task), arrival);
    lock.unlock();
    wake_.notify_one();
    return handle;
  }

  std::vector<std::shared_ptr<TaskHandle>> submit_all(std::vector<TaskSpec> tasks) override {
    for (const TaskSpec& task : tasks) check(task);
    std::vector<std::shared_ptr<TaskHandle>> handles;
    std::unique_lock lock(mutex_);
    const double now = clock_->now();
    require_open(tasks.size());
    for (const TaskSpec& task : tasks) class_id(task);  // may throw, so before any is accepted
    for (TaskSpec& task : tasks) {
      const double arrival = now + task.arrival.value_or(0);
      handles.push_back(accept(std::move(task), arrival));
    }
    lock.unlock();
    wake_.notify_one();
    return handles;
  }

  bool cancel(TaskId id) override {
    std::unique_lock lock(mutex_);
    const auto it = open_.find(id);
    if (it == open_.end() || it->second->done()) return false;
    inbox_.cancels.push_back(id);
    lock.unlock();
    wake_.notify_one();
    return true;
  }

  bool wait_idle(double timeout) override {
    require_other_thread("wait_idle");
    std::unique_lock lock(mutex_);
    auto idle = [this] { return open_.empty() && !running_; };
    if (timeout < 0) {
      idle_.wait(lock, idle);
    } else if (!idle_.wait_for(lock, std::chrono::duration<double>(std::min(timeout, 1e6)), idle)) {
      return false;
    }
    if (!error_.empty()) throw stopped();
    return true;
  }

  void close() override {
    require_other_thread("close");
    {
      std::lock_guard lock(mutex_);
      closing_ = true;
    }
    wake_.notify_one();
    std::lock_guard lock(join_mutex_);
    if (thread_.joinable()) thread_.join();
  }

  double now() const override { return clock_->now(); }
  EngineStats stats() const override {
    std::lock_guard lock(mutex_);
    EngineStats stats = stats_;
    stats.submitted = submitted_;
    return stats;
  }
  std::vector<LogEvent> drain_events() override { return loop_.recorder().drain_events(); }
  std::vector<StepRecord> drain_steps() override { return loop_.recorder().drain_steps(); }

  std::string inspect_policy() override {
    return on_loop([this] { return loop_.policy().inspect(); });
  }
  std::string latency_json() override {
    return on_loop([this] { return loop_.latency().to_json(); });
  }
  void check_integrity() override {
    on_loop([this] { loop_.check_integrity(); });
  }

 private:
  struct Inbox {
    std::vector<std::unique_ptr<TaskState>> tasks;
    std::vector<TaskId> cancels;
    std::vector<std::function<void()>> calls;
    bool empty() const { return tasks.empty() && cancels.empty() && calls.empty(); }
    void clear() {
      tasks.clear();
      cancels.clear();
      calls.clear();
    }
  };

  // ---- callers' side --------------------------------------------------------------------------

  void check(const TaskSpec& task) const {
    task.validate();
    if (options_.vocab <= 0) return;
    for (int32_t id : task.prompt) {
      if (id < options_.vocab) continue;
      throw Error(ErrorKind::invalid_argument, "prompt", "token id " + std::to_string(id),
                  "ids below the vocabulary's size " + std::to_string(options_.vocab));
    }
  }

  Error stopped() const {
    return Error(ErrorKind::state, "engine", error_.empty() ? "closed" : "stopped by " + error_,
                 "a running engine");
  }

  void require_open(size_t more) const {
    if (closing_ || !error_.empty()) throw stopped();
    const size_t wanted = static_cast<size_t>(submitted_ - stats_.finished) + more;
    if (wanted > static_cast<size_t>(options_.max_queue)) {
      throw Error(ErrorKind::resource, "queue", std::to_string(wanted) + " live tasks",
                  "at most max_queue = " + std::to_string(options_.max_queue));
    }
  }

  void require_other_thread(const char* call) const {
    if (std::this_thread::get_id() != loop_id_) return;
    throw Error(ErrorKind::state, call, "a call from the engine's own thread", "another thread");
  }

  int32_t class_id(const TaskSpec& task) {
    auto [it, is_new] =
        class_ids_.try_emplace(task.class_name, static_cast<int32_t>(class_ids_.size()));
    if (is_new && class_ids_.size() > kMaxClasses) {
      class_ids_.erase(it);
      throw Error(ErrorKind::resource, "class_name", "more than 65536 different names",
                  "fewer classes");
    }
    return it->second;
  }

  std::shared_ptr<TaskHandle> accept(TaskSpec task, double arrival) {
    const int32_t class_number = class_id(task);
    auto state = std::make_unique<TaskState>(std::move(task), next_id_++, class_number, arrival,
                                             options_.token_bytes);
    std::shared_ptr<TaskResultBox> handle = state->handle;
    open_.emplace(state->id, handle);
    inbox_.tasks.push_back(std::move(state));
    ++submitted_;
    return handle;
  }

  // Runs `call` between two steps on the loop's thread and returns what it returned or threw.
  template <typename Call>
  std::invoke_result_t<Call> on_loop(Call call) {
    require_other_thread("this call");
    using Result = std::invoke_result_t<Call>;
    auto task = std::make_shared<std::packaged_task<Result()>>(std::move(call));
    std::future<Result> result = task->get_future();
    {
      std::lock_guard lock(mutex_);
      if (closing_ || !error_.empty()) throw stopped();
      inbox_.calls.push_back([task] { (*task)(); });
    }
    task.reset();
    wake_.notify_one();
    try {
      return result.get();
    } catch (const std::future_error&) {  // the loop ended before it came to the call
      std::lock_guard lock(mutex_);
      throw stopped();
    }
  }

  // ---- loop's side ----------------------------------------------------------------------------

  void main() {
    try {
      while (take_inbox()) {
        const double next = loop_.iterate();
        publish();
        sleep_until(next);
      }
      loop_.cancel_all();
    } catch (const std::exception& e) {
      die(e.what());
    } catch (...) {
      die("an unknown exception");
    }
    publish();
  }

  // False when the engine closes; then nothing can be submitted any more.
  bool take_inbox() {
    bool open;
    {
      std::lock_guard lock(mutex_);
      std::swap(inbox_, taken_);
      open = !closing_;
    }
    for (std::unique_ptr<TaskState>& task : taken_.tasks) loop_.enqueue(std::move(task));
    for (TaskId id : taken_.cancels) loop_.cancel(id);
    for (std::function<void()>& call : taken_.calls) call();
    taken_.clear();
    return open;
  }

  void die(const std::string& sentence) {
    {
      std::lock_guard lock(mutex_);
      error_ = sentence;
      for (Inbox* inbox : {&taken_, &inbox_}) {
        for (std::unique_ptr<TaskState>& task : inbox->tasks) {
          if (task) loop_.enqueue(std::move(task));
        }
        inbox->clear();
      }
    }
    loop_.fail(sentence);
  }

  // In this order, so that whoever sees a task done also sees it in the log and the statistics, and
  // whoever sees the engine idle sees every task done.
  void publish() {
    loop_.recorder().flush();
    bool idle;
    {
      std::lock_guard lock(mutex_);
      stats_ = loop_.stats();
      running_ = loop_.running();
      idle = open_.empty() && !running_;
    }
    std::vector<EndedTask>& ended = loop_.ended();
    if (!ended.empty()) {
      for (EndedTask& task : ended) {
        task.handle->end(task.reason, std::move(task.error), task.time);
      }
      std::lock_guard lock(mutex_);
      for (const EndedTask& task : ended) open_.erase(task.handle->id());
      idle = open_.empty() && !running_;
      ended.clear();
    }
    if (idle) idle_.notify_all();
  }

  void sleep_until(double time) {
    std::unique_lock lock(mutex_);
    if (time <= clock_->now() || closing_ || !inbox_.empty()) return;
    if (std::isfinite(time)) {
      lock.unlock();
      if (clock_->advance_to(time)) return;
      lock.lock();
    }
    const double seconds = std::min(time - clock_->now(), kLongestWait);
    wake_.wait_for(lock, std::chrono::duration<double>(seconds),
                   [this] { return closing_ || !inbox_.empty(); });
    lock.unlock();
    loop_.restart_watch();
  }

  const std::shared_ptr<Clock> clock_;
  const EngineOptions options_;
  Loop loop_;
  Inbox taken_;  // the loop's own

  mutable std::mutex mutex_;
  std::condition_variable wake_, idle_;
  Inbox inbox_;
  bool closing_ = false;
  std::string error_;  // why the loop died; empty while it lives
  std::unordered_map<TaskId, std::shared_ptr<TaskResultBox>> open_;
  bool running_ = false;  // a step is in flight: with the overlapped loop, perhaps for nobody
  std::unordered_map<std::string, int32_t> class_ids_;
  TaskId next_id_ = 1;
  int64_t submitted_ = 0;
  EngineStats stats_;

  std::mutex join_mutex_;
  std::thread thread_;
  std::thread::id loop_id_;
};

void check_options(const EngineOptions& options) {
  auto require = [](bool good, const char* field, int64_t value, const char* expected) {
    if (good) return;
    throw Error(ErrorKind::invalid_argument, field, std::to_string(value), expected);
  };
  require(options.max_rows >= 1, "max_rows", options.max_rows, "at least 1");
  require(options.max_step_tokens >= options.max_rows, "max_step_tokens", options.max_step_tokens,
          "at least max_rows");
  require(options.max_context >= 0, "max_context", options.max_context, "0 or more");
  require(options.max_queue >= 1, "max_queue", options.max_queue, "at least 1");
  require(options.prompt_lookup >= 0, "prompt_lookup", options.prompt_lookup, "0 or more");
  require(options.prompt_lookup == 0 || options.loop == LoopKind::plain, "prompt_lookup",
          options.prompt_lookup, "0 with the overlapped loop, which takes a row for one token");
  require(options.vocab >= 0, "vocab", options.vocab, "0 or more");
}

}  // namespace

std::unique_ptr<Engine> Engine::make(std::shared_ptr<Executor> executor,
                                     std::unique_ptr<Policy> policy,
                                     std::unique_ptr<LatencyModel> latency,
                                     std::shared_ptr<Clock> clock, const EngineOptions& options) {
  check_options(options);
  if (!executor || !policy || !latency || !clock) {
    throw Error(ErrorKind::invalid_argument, "engine", "a missing part",
                "an executor, a policy, a latency model and a clock");
  }
  if (policy->length_listener() != nullptr) {
    throw Error(ErrorKind::invalid_argument, "policy", policy->name(),
                "one that needs no true output lengths, which only a simulation knows");
  }
  return std::make_unique<EngineImpl>(std::move(executor), std::move(policy), std::move(latency),
                                      std::move(clock), options);
}

}  // namespace slicellm
