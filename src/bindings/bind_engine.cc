#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <limits>
#include <mutex>
#include <sstream>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>

#include "bindings/arguments.h"
#include "bindings/policy_object.h"
#include "bindings/records.h"
#include "engine/kv_pools.h"
#include "engine/warm_up.h"
#include "slicellm/engine.h"
#include "slicellm/error.h"
#include "slicellm/model.h"

namespace slicellm {
namespace {

constexpr double kSignalInterval = 0.1;  // seconds between two looks for Ctrl-C while waiting
constexpr int64_t kInt32Max = std::numeric_limits<int32_t>::max();

// Waits in short pieces without the GIL, so that signal handlers run: wait(seconds) -> done.
// False on timeout (seconds, < 0 = for ever).
template <typename Wait>
bool wait_with_signals(double timeout, Wait wait) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  for (;;) {
    const double left = timeout < 0
                            ? kSignalInterval
                            : timeout - std::chrono::duration<double>(Clock::now() - start).count();
    bool done;
    {
      py::gil_scoped_release release;
      done = wait(std::clamp(left, 0.0, kSignalInterval));
    }
    if (done) return true;
    if (left <= 0) return false;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }
}

// Ids of handles with news, each once, for one consumer.
class UpdateQueue {
 public:
  void open(TaskId id) {  // it has a handle
    std::lock_guard lock(mutex_);
    queued_.emplace(id, false);
  }
  void add(TaskId id) {
    {
      std::lock_guard lock(mutex_);
      const auto at = queued_.find(id);
      if (at == queued_.end() || std::exchange(at->second, true)) return;
      order_.push_back(id);
    }
    changed_.notify_one();
  }
  void remove(TaskId id) {  // its handle is gone; news that are on their way find none
    std::lock_guard lock(mutex_);
    const auto at = queued_.find(id);
    if (at->second) order_.erase(std::find(order_.begin(), order_.end(), id));
    queued_.erase(at);
  }
  void close() {
    {
      std::lock_guard lock(mutex_);
      closed_ = true;
    }
    changed_.notify_all();
  }
  bool closed_and_empty() const {
    std::lock_guard lock(mutex_);
    return closed_ && order_.empty();
  }
  // True when there is something to return: ids, or that the queue is closed.
  bool wait(double timeout) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::duration<double>(timeout),
                             [this] { return closed_ || !order_.empty(); });
  }
  std::vector<TaskId> take() {
    std::lock_guard lock(mutex_);
    std::vector<TaskId> ids(order_.begin(), order_.end());
    for (TaskId id : ids) queued_[id] = false;
    order_.clear();
    return ids;
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<TaskId> order_;
  std::unordered_map<TaskId, bool> queued_;  // by handle: is it in order_?
  bool closed_ = false;
};

// A handle that reports to its engine's update queue as long as Python holds it.
class PyTaskHandle {
 public:
  PyTaskHandle(std::shared_ptr<TaskHandle> handle, std::shared_ptr<UpdateQueue> updates)
      : handle_(std::move(handle)), updates_(std::move(updates)) {
    updates_->open(handle_->id());
    handle_->on_update([queue = updates_, id = handle_->id()] { queue->add(id); });
  }
  ~PyTaskHandle() {
    handle_->on_update(nullptr);
    updates_->remove(handle_->id());
  }
  PyTaskHandle(const PyTaskHandle&) = delete;
  PyTaskHandle& operator=(const PyTaskHandle&) = delete;

  TaskHandle& get() { return *handle_; }

 private:
  std::shared_ptr<TaskHandle> handle_;
  std::shared_ptr<UpdateQueue> updates_;
};

py::dict to_dict(const TaskResult& result) {
  const size_t n = result.tokens.size();
  py::list ids(n), times(n), logprobs(n), top(n);
  for (size_t i = 0; i < n; ++i) {
    const Token& token = result.tokens[i];
    ids[i] = token.id;
    times[i] = token.time;
    logprobs[i] = token.logprob;
    top[i] = py::cast(token.top_logprobs);
  }
  py::dict d;
  d["id"] = result.id;
  d["reason"] = to_string(result.reason);
  d["error"] = result.error;
  d["arrival"] = result.arrival;
  d["finish_time"] = result.finish_time;
  d["prompt_tokens"] = result.prompt_tokens;
  d["cached_tokens"] = result.cached_tokens;
  d["token_ids"] = ids;
  d["token_times"] = times;
  d["logprobs"] = logprobs;
  d["top_logprobs"] = top;
  d["text"] = result.text;
  return d;
}

py::dict take(PyTaskHandle& handle, double timeout) {
  TaskResult news;
  wait_with_signals(timeout, [&](double seconds) {
    news = handle.get().take(seconds);
    return news.reason != FinishReason::none || !news.tokens.empty() || !news.text.empty();
  });
  return to_dict(news);
}

py::dict wait(PyTaskHandle& handle, double timeout) {
  const auto done = [&](double seconds) { return handle.get().wait_done(seconds); };
  if (!wait_with_signals(timeout, done)) {
    std::ostringstream seconds;
    seconds << timeout;
    throw Error(ErrorKind::state, "task " + std::to_string(handle.get().id()), "no end in time",
                "its end within " + seconds.str() + " s");
  }
  return to_dict(handle.get().wait(0));
}

// The engine as Python holds it: it may go away while its loop waits for the GIL.
class PyEngine {
 public:
  PyEngine(const std::shared_ptr<Model>& model, const py::object& policy,
           const LatencyModel& latency, int64_t kv_cache_bytes, int64_t host_kv_bytes,
           const EngineOptions& options, const std::optional<Progress>& warming_up)
      : model_(model), updates_(std::make_shared<UpdateQueue>()) {
    const KvPools blocks = size_kv_pools(*model, options, kv_cache_bytes, host_kv_bytes);
    auto executor = make_executor(model, blocks.device_blocks, blocks.host_blocks);
    if (warming_up) {
      py::gil_scoped_release release;
      warm_up(*executor, options, *warming_up);
    }
    engine_ = Engine::make(std::move(executor), take_policy(policy), latency.clone(),
                           make_steady_clock(), options);
  }
  ~PyEngine() {
    try {
      close();
    } catch (const Error&) {
      // The garbage collector came by while the engine's own thread ran a policy in Python: that
      // thread cannot wait for its own end.
      std::thread([engine = std::move(engine_), updates = updates_, model = model_]() mutable {
        engine->close();
        updates->close();
        py::gil_scoped_acquire acquire;  // for what it holds of Python
        engine.reset();
      }).detach();
    }
  }

  void close() {
    py::gil_scoped_release release;  // a policy in Python needs it to come to an end
    engine_->close();
    updates_->close();
  }
  Engine& get() { return *engine_; }
  const Model& model() const { return *model_; }

  std::unique_ptr<PyTaskHandle> wrap(std::shared_ptr<TaskHandle> handle) {
    return std::make_unique<PyTaskHandle>(std::move(handle), updates_);
  }
  std::vector<TaskId> wait_updates(double timeout) {
    if (updates_->closed_and_empty()) {
      throw Error(ErrorKind::state, "engine", "closed", "a running engine");
    }
    wait_with_signals(timeout, [this](double seconds) { return updates_->wait(seconds); });
    return updates_->take();
  }

 private:
  std::shared_ptr<Model> model_;
  std::shared_ptr<UpdateQueue> updates_;
  std::unique_ptr<Engine> engine_;
};

std::vector<std::string> to_bytes(const py::handle& value, const char* field) {
  std::vector<std::string> result;
  const bool sequence = PySequence_Check(value.ptr()) && !PyBytes_Check(value.ptr());
  for (py::handle item :
       sequence ? py::list(py::reinterpret_borrow<py::object>(value)) : py::list()) {
    if (!PyBytes_Check(item.ptr())) break;
    result.push_back(py::reinterpret_borrow<py::bytes>(item));
  }
  if (!sequence || result.size() != py::len(value)) {
    throw Error(ErrorKind::invalid_argument, field, describe(value), "a sequence of bytes");
  }
  return result;
}

std::shared_ptr<PyEngine> make_engine(const std::shared_ptr<Model>& model, const py::object& policy,
                                      const LatencyModel& latency, const py::kwargs& kwargs) {
  constexpr int64_t kMaxBytes = int64_t{1} << 50;
  const ModelSpec& spec = model->spec();
  Keywords keywords(kwargs);
  EngineOptions options;
  options.max_rows = keywords.count("max_rows", options.max_rows, 1, "a count above 0");
  options.max_step_tokens =
      keywords.count("max_step_tokens", options.max_step_tokens, 1, "a count above 0");
  options.max_context = keywords.count("max_context", 0, 0, "0 (the model's) or a count above 0");
  if (options.max_context == 0) options.max_context = spec.max_positions;
  if (options.max_context > spec.max_positions) {
    throw Error(ErrorKind::invalid_argument, "max_context", std::to_string(options.max_context),
                "at most the model's " + std::to_string(spec.max_positions));
  }
  options.max_queue = keywords.count("max_queue", options.max_queue, 1, "a count above 0");
  options.prefill_divisible = spec.prefill_divisible;
  options.vocab = spec.vocab;
  const py::object eos_ids = keywords.take("eos_ids");
  options.eos_ids = eos_ids.is_none() ? spec.eos_ids : to_ids(eos_ids, "eos_ids");
  const py::object token_bytes = keywords.take("token_bytes");
  if (!token_bytes.is_none()) options.token_bytes = to_bytes(token_bytes, "token_bytes");
  const py::object loop = keywords.take("loop");
  if (!loop.is_none()) options.loop = parse_loop(to_text(loop, "loop"));
  const py::object prefix_cache = keywords.take("prefix_cache");
  if (!prefix_cache.is_none()) options.prefix_cache = to_bool(prefix_cache, "prefix_cache");
  options.prompt_lookup = keywords.count("prompt_lookup", 0, 0, "0 (off) or a count above 0");
  const py::object record_events = keywords.take("record_events");
  if (!record_events.is_none()) options.record_events = to_bool(record_events, "record_events");
  const int64_t device_bytes = keywords.integer("kv_cache_bytes", 0, 0, kMaxBytes,
                                                "0 (from free memory) or a number of bytes");
  const int64_t host_bytes = keywords.integer("host_kv_bytes", -1, -1, kMaxBytes,
                                              "-1 (as much as on the device) or a number of bytes");
  const py::object warm = keywords.take("warm_up");
  const py::object callback = keywords.take("progress");
  std::optional<Progress> warming_up;
  if (!warm.is_none() && to_bool(warm, "warm_up")) {
    warming_up.emplace();
    if (!callback.is_none()) {
      *warming_up = [&callback](uint64_t done, uint64_t total) {
        py::gil_scoped_acquire gil;
        callback(done, total);
      };
    }
  }
  keywords.require_empty("Engine");
  return std::make_shared<PyEngine>(model, policy, latency, device_bytes, host_bytes, options,
                                    warming_up);
}

py::dict stats_dict(const EngineStats& stats, const Model& model) {
  py::dict d;
  d["steps"] = stats.steps;
  d["submitted"] = stats.submitted;
  d["finished"] = stats.finished;
  d["decode_steps"] = stats.decode_steps;
  d["graph_steps"] = stats.graph_steps;
  d["prefill_tokens"] = stats.prefill_tokens;
  d["reused_tokens"] = stats.reused_tokens;
  d["drafted_tokens"] = stats.drafted_tokens;
  d["accepted_tokens"] = stats.accepted_tokens;
  d["live"] = stats.live;
  d["free_blocks"] = stats.free_blocks;
  d["total_blocks"] = stats.total_blocks;
  d["free_host_blocks"] = stats.free_host_blocks;
  d["total_host_blocks"] = stats.total_host_blocks;
  d["busy_seconds"] = stats.busy_seconds;
  d["device_bytes"] = model.device_bytes();
  return d;
}

void bind_task_handle(py::module_& m) {
  py::class_<PyTaskHandle>(m, "TaskHandle",
                           "The caller's end of a task. Waiting releases the GIL and obeys Ctrl-C.")
      .def_property_readonly("id", [](PyTaskHandle& h) { return h.get().id(); })
      .def_property_readonly("done", [](PyTaskHandle& h) { return h.get().done(); })
      .def("take", &take, py::arg("timeout") = -1.0,
           "What is new since the last call: blocks until there is something, the task has ended "
           "(then `reason` is not \"none\") or the timeout (seconds, < 0 = for ever) has passed.")
      .def("wait", &wait, py::arg("timeout") = -1.0,
           "Everything, once the task has ended. Raises StateError on timeout.");
}

}  // namespace

void bind_engine(py::module_& m) {
  bind_task_handle(m);
  // Engines that are still open when the interpreter ends are closed while it can still run them.
  // Guarded by the GIL.
  auto open = std::make_shared<std::vector<std::weak_ptr<PyEngine>>>();
  py::module_::import("atexit").attr("register")(py::cpp_function([open] {
    for (const std::weak_ptr<PyEngine>& weak : std::exchange(*open, {})) {
      if (auto engine = weak.lock()) engine->close();
    }
  }));
  auto make = [open](const std::shared_ptr<Model>& model, const py::object& policy,
                     const LatencyModel& latency, const py::kwargs& options) {
    auto engine = make_engine(model, policy, latency, options);
    std::erase_if(*open, [](const std::weak_ptr<PyEngine>& weak) { return weak.expired(); });
    open->push_back(engine);
    return engine;
  };

  const auto nogil = py::call_guard<py::gil_scoped_release>();
  py::class_<PyEngine, std::shared_ptr<PyEngine>>(
      m, "Engine",
      "Runs tasks on a model under a policy, on a thread of its own. Thread-safe; calls that wait "
      "release the GIL. The arguments are those of _core.pyi.")
      .def(py::init(make), py::arg("model"), py::arg("policy"), py::arg("latency"))
      .def(
          "submit",
          [](PyEngine& e, const TaskSpec& task) {
            std::shared_ptr<TaskHandle> handle;
            {
              py::gil_scoped_release release;
              handle = e.get().submit(task);
            }
            return e.wrap(std::move(handle));
          },
          py::arg("task"), "arrival_s, if given, is on the engine's clock (see now()).")
      .def(
          "submit_all",
          [](PyEngine& e, std::vector<TaskSpec> tasks) {
            std::vector<std::shared_ptr<TaskHandle>> handles;
            {
              py::gil_scoped_release release;
              handles = e.get().submit_all(std::move(tasks));
            }
            std::vector<std::unique_ptr<PyTaskHandle>> wrapped;
            for (auto& handle : handles) wrapped.push_back(e.wrap(std::move(handle)));
            return wrapped;
          },
          py::arg("tasks"), "All at once; arrival_s, if given, is in seconds after this call.")
      .def(
          "cancel", [](PyEngine& e, TaskId id) { return e.get().cancel(id); }, py::arg("id"), nogil)
      .def(
          "wait_idle",
          [](PyEngine& e) {
            wait_with_signals(-1, [&](double seconds) { return e.get().wait_idle(seconds); });
          },
          "Until no task is live or scheduled.")
      .def("close", &PyEngine::close)
      .def("wait_updates", &PyEngine::wait_updates, py::arg("timeout"),
           "Ids of handles with something new since the last call, or [] after `timeout` seconds. "
           "For one consumer. Raises StateError once the engine is closed and nothing is left.")
      .def("now", [](PyEngine& e) { return e.get().now(); })
      .def("stats", [](PyEngine& e) { return stats_dict(e.get().stats(), e.model()); })
      .def(
          "inspect_policy", [](PyEngine& e) { return e.get().inspect_policy(); }, nogil)
      .def(
          "latency_json", [](PyEngine& e) { return e.get().latency_json(); }, nogil)
      .def("drain_events", [](PyEngine& e) { return event_list(e.get().drain_events()); })
      .def("drain_steps", [](PyEngine& e) { return steps_dict(e.get().drain_steps()); })
      .def(
          "check_integrity", [](PyEngine& e) { e.get().check_integrity(); }, nogil);
}

}  // namespace slicellm
