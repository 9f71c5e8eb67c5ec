#include <limits>

#include "bindings/arguments.h"
#include "slicellm/task.h"

namespace slicellm {
namespace {

constexpr int64_t kInt32Max = std::numeric_limits<int32_t>::max();

int32_t to_count(const py::object& value, const char* field) {
  return static_cast<int32_t>(to_int(value, field, -kInt32Max - 1, kInt32Max, "an integer"));
}

TaskSpec make_task(const py::object& prompt, const py::object& max_tokens,
                   const py::object& utility, const py::object& ttft_ms, const py::object& tpot_ms,
                   const py::object& deadline_ms, const py::object& class_name,
                   const py::object& temperature, const py::object& top_k, const py::object& top_p,
                   const py::object& min_p, const py::object& repetition_penalty,
                   const py::object& seed, const py::object& logprobs, const py::object& stop,
                   const py::object& stop_ids, const py::object& ignore_eos,
                   const py::object& stop_at_deadline, const py::object& arrival_s,
                   const py::object& true_output_tokens) {
  TaskSpec task;
  task.prompt = to_ids(prompt, "prompt");
  task.max_tokens = to_count(max_tokens, "max_tokens");
  task.utility = to_number(utility, "utility");
  task.slo.ttft = to_seconds(ttft_ms, "ttft_ms");
  task.slo.tpot = to_seconds(tpot_ms, "tpot_ms");
  task.slo.deadline = to_seconds(deadline_ms, "deadline_ms");
  task.class_name = to_text(class_name, "class_name");
  task.sampling.temperature = to_number(temperature, "temperature");
  task.sampling.top_k = to_count(top_k, "top_k");
  task.sampling.top_p = to_number(top_p, "top_p");
  task.sampling.min_p = to_number(min_p, "min_p");
  task.sampling.repetition_penalty = to_number(repetition_penalty, "repetition_penalty");
  task.sampling.seed = to_uint64(seed, "seed");
  if (!logprobs.is_none()) {
    task.sampling.logprobs = static_cast<int32_t>(
        to_int(logprobs, "logprobs", 0, kInt32Max, "nothing, or a count from 0 to 100"));
  }
  task.stop = to_texts(stop, "stop");
  task.stop_ids = to_ids(stop_ids, "stop_ids");
  task.ignore_eos = to_bool(ignore_eos, "ignore_eos");
  task.stop_at_deadline = to_bool(stop_at_deadline, "stop_at_deadline");
  if (!arrival_s.is_none()) task.arrival = to_number(arrival_s, "arrival_s");
  task.true_output_tokens = to_count(true_output_tokens, "true_output_tokens");
  task.validate();
  return task;
}

std::optional<double> milliseconds(const std::optional<double>& seconds) {
  if (!seconds) return std::nullopt;
  return *seconds * 1000;
}

}  // namespace

void bind_task(py::module_& m) {
  py::class_<TaskSpec> task(m, "TaskSpec",
                            "A request for the engine: token ids, sampling, SLO and utility. "
                            "Read-only once made; a bad value raises InvalidArgument.");
  task.def(py::init(&make_task), py::arg("prompt"), py::kw_only(), py::arg("max_tokens") = 256,
           py::arg("utility") = 1.0, py::arg("ttft_ms") = py::none(),
           py::arg("tpot_ms") = py::none(), py::arg("deadline_ms") = py::none(),
           py::arg("class_name") = "default", py::arg("temperature") = 0.0, py::arg("top_k") = 0,
           py::arg("top_p") = 1.0, py::arg("min_p") = 0.0, py::arg("repetition_penalty") = 1.0,
           py::arg("seed") = 0, py::arg("logprobs") = py::none(), py::arg("stop") = py::tuple(),
           py::arg("stop_ids") = py::tuple(), py::arg("ignore_eos") = false,
           py::arg("stop_at_deadline") = false, py::arg("arrival_s") = py::none(),
           py::arg("true_output_tokens") = 0);

  auto property = [&](const char* name, auto getter) { task.def_property_readonly(name, getter); };
  property("prompt", [](const TaskSpec& t) { return t.prompt; });
  property("max_tokens", [](const TaskSpec& t) { return t.max_tokens; });
  property("utility", [](const TaskSpec& t) { return t.utility; });
  property("ttft_ms", [](const TaskSpec& t) { return milliseconds(t.slo.ttft); });
  property("tpot_ms", [](const TaskSpec& t) { return milliseconds(t.slo.tpot); });
  property("deadline_ms", [](const TaskSpec& t) { return milliseconds(t.slo.deadline); });
  property("class_name", [](const TaskSpec& t) { return t.class_name; });
  property("temperature", [](const TaskSpec& t) { return t.sampling.temperature; });
  property("top_k", [](const TaskSpec& t) { return t.sampling.top_k; });
  property("top_p", [](const TaskSpec& t) { return t.sampling.top_p; });
  property("min_p", [](const TaskSpec& t) { return t.sampling.min_p; });
  property("repetition_penalty", [](const TaskSpec& t) { return t.sampling.repetition_penalty; });
  property("seed", [](const TaskSpec& t) { return t.sampling.seed; });
  property("logprobs", [](const TaskSpec& t) {
    return t.sampling.logprobs < 0 ? std::nullopt : std::optional<int32_t>(t.sampling.logprobs);
  });
  property("stop", [](const TaskSpec& t) { return t.stop; });
  property("stop_ids", [](const TaskSpec& t) { return t.stop_ids; });
  property("ignore_eos", [](const TaskSpec& t) { return t.ignore_eos; });
  property("stop_at_deadline", [](const TaskSpec& t) { return t.stop_at_deadline; });
  property("arrival_s", [](const TaskSpec& t) { return t.arrival; });
  property("true_output_tokens", [](const TaskSpec& t) { return t.true_output_tokens; });
}

}  // namespace slicellm
