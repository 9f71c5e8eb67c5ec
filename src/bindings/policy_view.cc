#include "bindings/policy_view.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include "slicellm/error.h"

namespace slicellm {
namespace {

using Seconds = std::optional<double>;

constexpr int32_t kMaxCount = 1000000000;  // sums of two counts stay within int32_t

void require(bool ok, const std::string& field, double value, const std::string& expected) {
  if (ok) return;
  throw Error(ErrorKind::invalid_argument, field, py::str(py::float_(value)), expected);
}

void require_count(const std::string& field, int64_t value, int64_t low = 0) {
  if (value >= low && value <= kMaxCount) return;
  throw Error(ErrorKind::invalid_argument, field, std::to_string(value),
              "an integer from " + std::to_string(low) + " to " + std::to_string(kMaxCount));
}

const char* to_text(KvState kv) {
  return kv == KvState::none ? "none" : kv == KvState::device ? "device" : "host";
}
const char* to_text(KvActionKind kind) {
  return kind == KvActionKind::swap_out  ? "swap_out"
         : kind == KvActionKind::swap_in ? "swap_in"
                                         : "drop";
}

// Everything that native policies rely on, for rows that outside code has filled in.
void validate(const TaskView& t) {
  if (t.id < 0) return;
  const auto in_task = [&](const char* field) {
    return "task " + std::to_string(t.id) + " " + field;
  };
  const auto target = [&](const char* field, const Seconds& value) {
    if (value) {
      require(std::isfinite(*value) && *value > 0, in_task(field), *value * 1e3,
              "a number above 0");
    }
  };
  require_count(in_task("class_id"), t.class_id);
  require(std::isfinite(t.utility) && t.utility >= 0, in_task("utility"), t.utility,
          "a number of at least 0");
  target("ttft_ms", t.slo.ttft);
  target("tpot_ms", t.slo.tpot);
  target("deadline_ms", t.slo.deadline);
  require(std::isfinite(t.arrival), in_task("arrival"), t.arrival, "a time");
  require_count(in_task("prompt_len"), t.prompt_len, 1);
  require_count(in_task("max_tokens"), t.max_tokens, 1);
  require_count(in_task("produced"), t.produced);
  require_count(in_task("cached"), t.cached);
  require_count(in_task("blocks"), t.blocks);
  require_count(in_task("shared"), t.shared);
  if (t.shared > t.blocks) {
    throw Error(ErrorKind::invalid_argument, in_task("shared"), std::to_string(t.shared),
                "at most its blocks");
  }
  if (t.cached >= t.prompt_len + t.produced) {
    throw Error(ErrorKind::invalid_argument, in_task("cached"), std::to_string(t.cached),
                "fewer tokens than prompt_len + produced");
  }
  if ((t.kv == KvState::none) != (t.cached == 0 && t.blocks == 0)) {
    throw Error(ErrorKind::invalid_argument, in_task("kv"), to_text(t.kv),
                "none exactly when nothing is cached");
  }
}

KvState parse_kv(const std::string& text) {
  for (KvState kv : {KvState::none, KvState::device, KvState::host}) {
    if (text == to_text(kv)) return kv;
  }
  throw Error(ErrorKind::invalid_argument, "kv", "\"" + text + "\"", "none, device or host");
}

KvActionKind parse_action(const std::string& text) {
  for (KvActionKind kind : {KvActionKind::swap_out, KvActionKind::swap_in, KvActionKind::drop}) {
    if (text == to_text(kind)) return kind;
  }
  throw Error(ErrorKind::invalid_argument, "plan.kv", "\"" + text + "\"",
              "swap_out, swap_in or drop");
}

MissCause parse_cause(const std::string& text) {
  for (MissCause cause : {MissCause::not_admitted, MissCause::too_late, MissCause::starved,
                          MissCause::length, MissCause::slow_steps}) {
    if (text == to_string(cause)) return cause;
  }
  throw Error(ErrorKind::invalid_argument, "plan.relegated", "\"" + text + "\"",
              "not_admitted, too_late, starved, length or slow_steps");
}

FinishReason parse_reason(const std::string& text) {
  if (text == "rejected") return FinishReason::rejected;
  if (text == "deadline") return FinishReason::deadline;
  throw Error(ErrorKind::invalid_argument, "plan.endings", "\"" + text + "\"",
              "rejected or deadline");
}

FinishReason parse_ended(const std::string& text) {
  for (int i = 0; i <= static_cast<int>(FinishReason::error); ++i) {
    const auto reason = static_cast<FinishReason>(i);
    if (text == to_string(reason)) return reason;
  }
  throw Error(ErrorKind::invalid_argument, "ended", "\"" + text + "\"",
              "none, stop, length, cancelled, deadline, rejected or error");
}

Seconds from_ms(Seconds ms) { return ms ? Seconds(*ms / 1e3) : ms; }
Seconds to_ms(Seconds s) { return s ? Seconds(*s * 1e3) : s; }

template <Seconds Slo::*target>
void bind_target(py::class_<TaskView>& c, const char* name) {
  c.def_property(
      name, [](const TaskView& t) { return to_ms(t.slo.*target); },
      [](TaskView& t, Seconds ms) { t.slo.*target = from_ms(ms); });
}

void bind_task_view(py::module_& m) {
  py::class_<TaskView> c(m, "TaskView",
                         "A task as a policy sees it. Targets are in milliseconds; times are in "
                         "seconds on the engine's clock.");
  c.def(py::init([](py::kwargs fields) {
    TaskView task;
    py::object self = py::cast(&task, py::return_value_policy::reference);
    for (const auto& [name, value] : fields) {
      if (!py::hasattr(py::type::of<TaskView>(), py::str(name))) {
        throw Error(ErrorKind::invalid_argument, "TaskView",
                    "\"" + std::string(py::str(name)) + "\"", "the name of one of its fields");
      }
      py::setattr(self, py::str(name), value);
    }
    return task;
  }));
  c.def_readwrite("id", &TaskView::id);
  c.def_readwrite("class_id", &TaskView::class_id);
  c.def_readwrite("utility", &TaskView::utility);
  bind_target<&Slo::ttft>(c, "ttft_ms");
  bind_target<&Slo::tpot>(c, "tpot_ms");
  bind_target<&Slo::deadline>(c, "deadline_ms");
  c.def_readwrite("arrival", &TaskView::arrival);
  c.def_readwrite("prompt_len", &TaskView::prompt_len);
  c.def_readwrite("max_tokens", &TaskView::max_tokens);
  c.def_readwrite("prefill_divisible", &TaskView::prefill_divisible);
  c.def_readwrite("produced", &TaskView::produced);
  c.def_readwrite("cached", &TaskView::cached);
  c.def_readwrite("first_token_time", &TaskView::first_token_time);
  c.def_readwrite("last_token_time", &TaskView::last_token_time);
  c.def_property(
      "kv", [](const TaskView& t) { return to_text(t.kv); },
      [](TaskView& t, const std::string& text) { t.kv = parse_kv(text); });
  c.def_readwrite("blocks", &TaskView::blocks);
  c.def_readwrite("shared", &TaskView::shared);
  c.def_property(
      "ended", [](const TaskView& t) { return to_string(t.ended); },
      [](TaskView& t, const std::string& text) { t.ended = parse_ended(text); });
  c.def("pending", &TaskView::pending, "Tokens that are known but not in KV.");
  c.def("ready_to_decode", &TaskView::ready_to_decode);
  c.def("__repr__", [](const TaskView& t) {
    return "<TaskView " + std::to_string(t.id) + ": prompt " + std::to_string(t.prompt_len) +
           ", produced " + std::to_string(t.produced) + ", kv " + to_text(t.kv) + ">";
  });
}

void bind_view(py::module_& m) {
  py::class_<PyView, std::shared_ptr<PyView>> c(
      m, "View",
      "What a policy may look at when it plans. A view that an engine lends to a "
      "policy is valid during the call only.");
  c.def(py::init([](std::vector<TaskView> tasks, py::object latency, double now,
                    int32_t block_tokens, int32_t total_blocks, std::optional<int32_t> free_blocks,
                    int32_t total_host_blocks, std::optional<int32_t> free_host_blocks,
                    size_t block_bytes, int32_t max_rows, int32_t max_step_tokens) {
          View v;
          v.now = now;
          v.block_tokens = block_tokens;
          v.total_blocks = total_blocks;
          v.free_blocks = free_blocks.value_or(-1);
          v.total_host_blocks = total_host_blocks;
          v.free_host_blocks = free_host_blocks.value_or(-1);
          v.block_bytes = block_bytes;
          v.max_rows = max_rows;
          v.max_step_tokens = max_step_tokens;
          return std::make_shared<PyView>(std::move(tasks), std::move(latency), v);
        }),
        py::arg("tasks"), py::arg("latency"), py::kw_only(), py::arg("now") = 0.0,
        py::arg("block_tokens") = 16, py::arg("total_blocks") = 4096,
        py::arg("free_blocks") = py::none(), py::arg("total_host_blocks") = 4096,
        py::arg("free_host_blocks") = py::none(), py::arg("block_bytes") = 0,
        py::arg("max_rows") = 64, py::arg("max_step_tokens") = 2048,
        "`tasks` is indexed by slot; rows with id -1 are empty. Free blocks default to what the "
        "tasks leave.");
  const auto field = [&c](const char* name, auto member) {
    c.def_property_readonly(name, [member](const PyView& v) { return v.get().*member; });
  };
  field("now", &View::now);
  field("block_tokens", &View::block_tokens);
  field("total_blocks", &View::total_blocks);
  field("free_blocks", &View::free_blocks);
  field("total_host_blocks", &View::total_host_blocks);
  field("free_host_blocks", &View::free_host_blocks);
  field("block_bytes", &View::block_bytes);
  field("max_rows", &View::max_rows);
  field("max_step_tokens", &View::max_step_tokens);
  c.def_property_readonly("tasks", [](const PyView& v) {
    return py::tuple(py::cast(std::vector<TaskView>(v.get().tasks.begin(), v.get().tasks.end())));
  });
  c.def_property_readonly("live", [](const PyView& v) {
    return py::tuple(py::cast(std::vector<int32_t>(v.get().live.begin(), v.get().live.end())));
  });
  c.def("copy", &PyView::copy,
        "The view as it is now, latency model included, valid for as long as it is kept.");
  c.def(
      "task", [](const PyView& v, int32_t slot) { return TaskView(v.row(slot)); }, py::arg("slot"),
      "A copy of one row.");
  c.def(
      "blocks_for",
      [](const PyView& v, int32_t tokens) {
        require_count("tokens", tokens);
        return v.get().blocks_for(tokens);
      },
      py::arg("tokens"));
  c.def(
      "decode_step_ms",
      [](const PyView& v, int32_t rows, double mean_context) {
        require_count("rows", rows, 1);
        require(std::isfinite(mean_context) && mean_context >= 0, "mean_context", mean_context,
                "a number of at least 0");
        return v.get().latency->decode_step(rows, mean_context) * 1e3;
      },
      py::arg("rows"), py::arg("mean_context") = 0.0);
  c.def(
      "predict_ms",
      [](const PyView& v, const StepPlan& plan) {
        PlanChecker().check(plan, v.get());
        const Prediction p = v.get().latency->predict(features_of(plan, v.get()));
        return std::make_tuple(p.median * 1e3, p.quantile * 1e3);
      },
      py::arg("plan"), "Median and 95th percentile of the duration of a valid plan's step.");
}

using Chunk = std::pair<int32_t, int32_t>;
using Action = std::pair<std::string, int32_t>;
using Relegated = std::pair<int32_t, std::string>;
using End = std::tuple<int32_t, std::string, std::string>;

void set_prefill(StepPlan& p, const std::vector<Chunk>& chunks) {
  p.prefill.clear();
  for (const auto& [slot, tokens] : chunks) p.prefill.push_back({slot, tokens});
}
void set_kv(StepPlan& p, const std::vector<Action>& actions) {
  p.kv.clear();
  for (const auto& [kind, slot] : actions) p.kv.push_back({parse_action(kind), slot});
}
void set_endings(StepPlan& p, const std::vector<End>& endings) {
  p.endings.clear();
  for (const auto& [slot, reason, message] : endings) {
    p.endings.push_back({slot, parse_reason(reason), message});
  }
}
void set_relegated(StepPlan& p, const std::vector<Relegated>& relegated) {
  p.relegated.clear();
  for (const auto& [slot, cause] : relegated) p.relegated.push_back({slot, parse_cause(cause)});
}
py::tuple get_prefill(const StepPlan& p) {
  py::list list;
  for (const PrefillChunk& c : p.prefill) list.append(py::make_tuple(c.slot, c.tokens));
  return py::tuple(list);
}
py::tuple get_kv(const StepPlan& p) {
  py::list list;
  for (const KvAction& a : p.kv) list.append(py::make_tuple(to_text(a.kind), a.slot));
  return py::tuple(list);
}
py::tuple get_endings(const StepPlan& p) {
  py::list list;
  for (const Ending& e : p.endings) {
    list.append(py::make_tuple(e.slot, e.reason == FinishReason::deadline ? "deadline" : "rejected",
                               e.message));
  }
  return py::tuple(list);
}
py::tuple get_relegated(const StepPlan& p) {
  py::list list;
  for (const Relegation& r : p.relegated) list.append(py::make_tuple(r.slot, to_string(r.cause)));
  return py::tuple(list);
}
py::tuple get_decode(const StepPlan& p) { return py::tuple(py::cast(p.decode)); }

template <std::vector<int32_t> Padding::*list>
void bind_padding(py::class_<StepPlan>& c, const char* name) {
  c.def_property(
      name, [](const StepPlan& p) { return py::tuple(py::cast(p.padding.*list)); },
      [](StepPlan& p, std::vector<int32_t> tokens) { p.padding.*list = std::move(tokens); });
}

void bind_step_plan(py::module_& m) {
  py::class_<StepPlan> c(m, "StepPlan",
                         "What a policy wants to run next. Sequences are read as tuples; assign a "
                         "whole sequence to change one.");
  c.def(py::init([](const std::vector<Chunk>& prefill, std::vector<int32_t> decode,
                    const std::vector<Action>& kv, const std::vector<End>& endings,
                    std::vector<int32_t> padding_rows, std::vector<int32_t> padding_prompts,
                    const std::vector<Relegated>& relegated, double wake_at) {
          StepPlan p;
          set_prefill(p, prefill);
          p.decode = std::move(decode);
          set_kv(p, kv);
          set_endings(p, endings);
          p.padding = {std::move(padding_rows), std::move(padding_prompts)};
          set_relegated(p, relegated);
          p.wake_at = wake_at;
          return p;
        }),
        py::kw_only(), py::arg("prefill") = py::tuple(), py::arg("decode") = py::tuple(),
        py::arg("kv") = py::tuple(), py::arg("endings") = py::tuple(),
        py::arg("padding_rows") = py::tuple(), py::arg("padding_prompts") = py::tuple(),
        py::arg("relegated") = py::tuple(),
        py::arg("wake_at") = std::numeric_limits<double>::infinity());
  c.def_property("prefill", get_prefill, set_prefill);
  c.def_property("decode", get_decode,
                 [](StepPlan& p, std::vector<int32_t> slots) { p.decode = std::move(slots); });
  c.def_property("kv", get_kv, set_kv);
  c.def_property("endings", get_endings, set_endings);
  bind_padding<&Padding::rows>(c, "padding_rows");
  bind_padding<&Padding::prompts>(c, "padding_prompts");
  c.def_property("relegated", get_relegated, set_relegated);
  c.def_readwrite("wake_at", &StepPlan::wake_at);
  c.def("runs", &StepPlan::runs, "Is there a step to run?");
  c.def("empty", &StepPlan::empty);
  c.def("__eq__", [](const StepPlan& a, const StepPlan& b) { return a == b; });
  c.def("__repr__", [](const StepPlan& p) {
    std::string text;
    const auto add = [&](const char* name, const py::object& value) {
      if (py::len(value) == 0) return;
      if (!text.empty()) text += ", ";
      text.append(name).append("=").append(py::repr(value).cast<std::string>());
    };
    add("prefill", get_prefill(p));
    add("decode", get_decode(p));
    add("kv", get_kv(p));
    add("endings", get_endings(p));
    add("padding_rows", py::tuple(py::cast(p.padding.rows)));
    add("padding_prompts", py::tuple(py::cast(p.padding.prompts)));
    add("relegated", get_relegated(p));
    if (std::isfinite(p.wake_at)) {
      if (!text.empty()) text += ", ";
      text.append("wake_at=").append(py::str(py::float_(p.wake_at)).cast<std::string>());
    }
    return "StepPlan(" + text + ")";
  });
}

}  // namespace

PyView::PyView(std::vector<TaskView> tasks, py::object latency, const View& view)
    : tasks_(std::move(tasks)), latency_(std::move(latency)), own_(view), view_(&own_) {
  require(std::isfinite(own_.now), "now", own_.now, "a time");
  require_count("block_tokens", own_.block_tokens, 1);
  require_count("total_blocks", own_.total_blocks);
  require_count("total_host_blocks", own_.total_host_blocks);
  require_count("max_rows", own_.max_rows, 1);
  require_count("max_step_tokens", own_.max_step_tokens, 1);
  int64_t held = 0, held_host = 0;
  for (size_t slot = 0; slot < tasks_.size(); ++slot) {
    TaskView& task = tasks_[slot];
    if (task.id < 0) continue;
    live_.push_back(static_cast<int32_t>(slot));
    if (task.kv != KvState::none && task.blocks == 0) task.blocks = own_.blocks_for(task.cached);
    validate(task);
    if (task.kv == KvState::device) held += task.blocks;
    if (task.kv == KvState::host) held_host += task.blocks;
  }
  std::sort(live_.begin(), live_.end(), [&](int32_t a, int32_t b) {
    return std::pair(tasks_[a].arrival, tasks_[a].id) < std::pair(tasks_[b].arrival, tasks_[b].id);
  });
  const auto free_of = [](const char* field, int32_t& free, int32_t total, int64_t in_use) {
    if (in_use > total || free > total - in_use) {
      throw Error(ErrorKind::invalid_argument, field,
                  std::to_string(std::max<int64_t>(free, in_use)),
                  "at most the " + std::to_string(total) + " blocks in all, with " +
                      std::to_string(in_use) + " held by tasks");
    }
    if (free < 0) free = static_cast<int32_t>(total - in_use);
  };
  free_of("free_blocks", own_.free_blocks, own_.total_blocks, held);
  free_of("free_host_blocks", own_.free_host_blocks, own_.total_host_blocks, held_host);
  own_.latency = latency_.cast<const LatencyModel*>();
  if (own_.latency == nullptr) {
    throw Error(ErrorKind::invalid_argument, "latency", "None", "a LatencyModel");
  }
  own_.tasks = tasks_;
  own_.live = live_;
}

std::shared_ptr<PyView> PyView::copy() const {
  auto made = std::make_shared<PyView>(get());
  made->tasks_.assign(get().tasks.begin(), get().tasks.end());
  made->live_.assign(get().live.begin(), get().live.end());
  made->latency_ = py::cast(get().latency->clone());
  made->own_ = get();
  made->own_.tasks = made->tasks_;
  made->own_.live = made->live_;
  made->own_.latency = made->latency_.cast<const LatencyModel*>();
  made->view_ = &made->own_;
  return made;
}

const View& PyView::get() const {
  if (view_ == nullptr) {
    throw Error(ErrorKind::state, "view", "a use after the call it was lent for",
                "views to be used inside on, plan or commit only");
  }
  return *view_;
}

const TaskView& PyView::row(int32_t slot) const {
  const View& v = get();
  if (slot < 0 || static_cast<size_t>(slot) >= v.tasks.size()) {
    throw Error(ErrorKind::invalid_argument, "slot", std::to_string(slot),
                "a slot below " + std::to_string(v.tasks.size()));
  }
  return v.tasks[slot];
}

void bind_policy_view(py::module_& m) {
  bind_task_view(m);
  bind_view(m);
  bind_step_plan(m);
}

}  // namespace slicellm
