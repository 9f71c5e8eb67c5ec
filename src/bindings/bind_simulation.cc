
#include "bindings/arguments.h"
#include "bindings/policy_object.h"
#include "bindings/records.h"
#include "slicellm/error.h"
#include "slicellm/simulation.h"

namespace slicellm {
namespace {

template <typename T>
using Column = py::array_t<T, py::array::c_style | py::array::forcecast>;

template <typename T>
py::array_t<T> to_array(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

// columns: name -> array, all of one length.
std::vector<SimTask> to_tasks(const py::dict& columns) {
  const auto arrival = columns["arrival"].cast<Column<double>>();
  const auto prompt = columns["prompt_tokens"].cast<Column<int32_t>>();
  const auto output = columns["output_tokens"].cast<Column<int32_t>>();
  const auto cap = columns["max_tokens"].cast<Column<int32_t>>();
  const auto class_id = columns["class_id"].cast<Column<int32_t>>();
  const py::ssize_t n = arrival.size();
  for (const py::ssize_t size : {prompt.size(), output.size(), cap.size(), class_id.size()}) {
    if (size == n) continue;
    throw Error(ErrorKind::invalid_argument, "tasks", "columns of different lengths",
                "one entry a task in each");
  }
  std::vector<SimTask> tasks;
  tasks.reserve(static_cast<size_t>(n));
  for (py::ssize_t i = 0; i < n; ++i) {
    tasks.push_back({arrival.at(i), prompt.at(i), output.at(i), cap.at(i), class_id.at(i)});
  }
  return tasks;
}

// (name, ttft_ms, tpot_ms, deadline_ms, utility), targets None or milliseconds.
SimClass to_class(const py::tuple& row) {
  SimClass c;
  c.name = to_text(row[0], "class_name");
  c.slo.ttft = to_seconds(row[1], "ttft_ms");
  c.slo.tpot = to_seconds(row[2], "tpot_ms");
  c.slo.deadline = to_seconds(row[3], "deadline_ms");
  c.utility = to_number(row[4], "utility");
  return c;
}

py::dict sketch_dict(const QuantileSketch& sketch, const std::vector<double>& percentiles) {
  py::dict d;
  d["count"] = sketch.count();
  d["mean"] = sketch.mean();
  d["max"] = sketch.max();
  py::list values;
  for (double p : percentiles) values.append(sketch.quantile(p / 100));
  d["percentiles"] = values;
  return d;
}

py::dict result_dict(const SimResult& result, const std::vector<double>& percentiles) {
  const SimTaskResults& t = result.tasks;
  py::dict d;
  d["arrival"] = to_array(t.arrival);
  d["first_token"] = to_array(t.first_token);
  d["last_token"] = to_array(t.last_token);
  d["finish"] = to_array(t.finish);
  d["max_gap"] = to_array(t.max_gap);
  d["max_lateness"] = to_array(t.max_lateness);
  d["tokens"] = to_array(t.tokens);
  d["reason"] = to_array(t.reason);
  d["gaps"] = sketch_dict(result.gaps, percentiles);
  d["plan_seconds"] = sketch_dict(result.plan_seconds, percentiles);
  d["num_steps"] = result.num_steps;
  d["busy_seconds"] = result.busy_seconds;
  d["prefill_seconds"] = result.prefill_seconds;
  d["end"] = result.end;
  d["most_live"] = result.most_live;
  d["decode_steps"] = result.decode_steps;
  d["decode_rows"] = result.decode_rows;
  d["invalid_tokens"] = result.invalid_tokens;
  d["pad_tokens"] = result.pad_tokens;
  d["latency_json"] = result.instances[0].latency_json;
  d["policy_state"] = result.instances[0].policy_state;
  d["dispatch_state"] = result.dispatch_state;
  py::list instances;
  for (const SimInstanceResult& instance : result.instances) {
    py::dict entry;
    entry["num_steps"] = instance.num_steps;
    entry["ended"] = instance.ended;
    entry["busy_seconds"] = instance.busy_seconds;
    entry["end"] = instance.end;
    entry["policy_state"] = instance.policy_state;
    instances.append(entry);
  }
  d["instances"] = instances;
  d["events"] = event_list(result.events);
  d["steps"] = steps_dict(result.steps);
  return d;
}

py::dict run(const py::object& policy, const LatencyModel& truth, const LatencyModel& belief,
             const std::vector<py::tuple>& class_rows, const py::dict& task_columns,
             const py::kwargs& kwargs) {
  Keywords keywords(kwargs);
  SimMachine machine;
  machine.blocks = keywords.count("blocks", 4096, 1, "a count above 0");
  machine.host_blocks = keywords.count("host_blocks", machine.blocks, 0, "a count");
  machine.kv.block_tokens = keywords.count("block_tokens", 16, 1, "a count above 0");
  // One layer and head, so that a block has the bytes asked for: K and V of two bytes a number.
  machine.kv.layers = machine.kv.kv_heads = 1;
  const int32_t bytes = keywords.count("bytes_per_token", 4, 4, "at least 4");
  machine.kv.head_dim = bytes / 4;
  const py::object jitter = keywords.take("jitter");
  if (!jitter.is_none()) machine.jitter = to_number(jitter, "jitter");
  const py::object residuals = keywords.take("residuals");
  if (!residuals.is_none()) {
    for (const py::handle value : residuals) {
      machine.residuals.push_back(
          to_number(py::reinterpret_borrow<py::object>(value), "residuals"));
    }
  }
  const py::object seed = keywords.take("seed");
  if (!seed.is_none()) machine.seed = to_uint64(seed, "seed");

  SimOptions options;
  EngineOptions& engine = options.engine;
  engine.max_rows = keywords.count("max_rows", engine.max_rows, 1, "a count above 0");
  engine.max_step_tokens =
      keywords.count("max_step_tokens", engine.max_step_tokens, 1, "a count above 0");
  engine.max_context = keywords.count("max_context", 0, 0, "0 (what the KV allows) or a count");
  const py::object loop = keywords.take("loop");
  if (!loop.is_none()) engine.loop = parse_loop(to_text(loop, "loop"));
  const py::object divisible = keywords.take("prefill_divisible");
  if (!divisible.is_none()) engine.prefill_divisible = to_bool(divisible, "prefill_divisible");
  const py::object record = keywords.take("record_events");
  engine.record_events = !record.is_none() && to_bool(record, "record_events");
  options.in_flight = keywords.count("in_flight", 0, 0, "0 (open loop) or a count");
  const py::object percentiles = keywords.take("percentiles");
  const auto asked =
      percentiles.is_none() ? std::vector<double>{50, 99} : percentiles.cast<std::vector<double>>();
  const py::object progress = keywords.take("progress");
  options.progress = [&progress](int64_t ended) {
    py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();  // Ctrl-C
    if (!progress.is_none()) progress(ended);
  };
  const int32_t count = keywords.count("instances", 1, 1, "a count above 0");
  const py::object dispatch = keywords.take("dispatch");
  const std::string dispatch_text =
      dispatch.is_none() ? "round_robin" : to_text(dispatch, "dispatch");
  keywords.require_empty("simulate");
  if (count > 1 && !py::isinstance<py::str>(policy)) {
    throw Error(ErrorKind::invalid_argument, "policy", py::repr(py::type::of(policy)),
                "a policy's name, as each instance has one of its own");
  }

  std::vector<SimClass> classes;
  for (const py::tuple& row : class_rows) {
    if (row.size() != 5) {
      throw Error(ErrorKind::invalid_argument, "classes", describe(row), "tuples of 5");
    }
    classes.push_back(to_class(row));
  }
  const std::vector<SimTask> tasks = to_tasks(task_columns);
  View view;  // an idle instance
  view.block_tokens = machine.kv.block_tokens;
  view.total_blocks = view.free_blocks = machine.blocks;
  view.max_rows = engine.max_rows;
  view.max_step_tokens = engine.max_step_tokens;
  view.latency = &belief;
  auto dispatcher = make_dispatcher(dispatch_text, count, view);
  std::vector<SimInstance> instances;
  for (int32_t k = 0; k < count; ++k, ++machine.seed) {
    instances.push_back(
        {make_sim_executor(truth.clone(), machine), take_policy(policy), belief.clone()});
  }
  SimResult result;
  {
    py::gil_scoped_release release;
    result = simulate_cluster(std::move(instances), std::move(dispatcher), classes, tasks, options);
  }
  return result_dict(result, asked);
}

}  // namespace

void bind_simulation(py::module_& m) {
  m.def("simulate", &run, py::arg("policy"), py::arg("truth"), py::arg("belief"),
        py::arg("classes"), py::arg("tasks"),
        "Runs tasks in virtual time. The arguments are those of _core.pyi.");
}

}  // namespace slicellm
