#include <string>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/policy_object.h"
#include "bindings/policy_view.h"
#include "slicellm/dispatch.h"
#include "slicellm/error.h"

namespace slicellm {
namespace {

const char* to_text(TaskEventKind kind) {
  return kind == TaskEventKind::arrive ? "arrive" : "finish";
}

TaskEventKind parse_event(const std::string& text) {
  if (text == "arrive") return TaskEventKind::arrive;
  if (text == "finish") return TaskEventKind::finish;
  throw Error(ErrorKind::invalid_argument, "kind", "\"" + text + "\"", "arrive or finish");
}

// Runs the methods of a Python class derived from slicellm.Policy. Whatever they raise becomes an
// Error(state) that names the class.
class PythonPolicy : public Policy {
 public:
  std::string name() const override {
    py::gil_scoped_acquire gil;
    const py::object type = py::type::of(self());
    const py::object name = type.attr("name");
    return py::isinstance<py::str>(name) ? name.cast<std::string>()
                                         : type.attr("__name__").cast<std::string>();
  }

  void on(const TaskEvent& event, const View& view) override {
    call(
        "on",
        [&](const py::function& method, const py::object& lent) {
          method(to_text(event.kind), event.slot, lent);
        },
        view);
  }

  StepPlan plan(const View& view) override {
    StepPlan result;
    call(
        "plan",
        [&](const py::function& method, const py::object& lent) {
          const py::object plan = method(lent);
          if (!py::isinstance<StepPlan>(plan)) {
            refuse(
                "plan() that returned " + std::string(py::str(py::type::of(plan).attr("__name__"))),
                "a StepPlan");
          }
          result = plan.cast<StepPlan>();
        },
        view);
    return result;
  }

  void commit(const StepPlan& plan, const StepOutcome& outcome, const View& view) override {
    call(
        "commit",
        [&](const py::function& method, const py::object& lent) {
          method(StepPlan(plan), outcome.duration, outcome.token_slots, lent);
        },
        view);
  }

  std::string inspect() const override {
    py::gil_scoped_acquire gil;
    const py::function method = py::get_override(static_cast<const Policy*>(this), "inspect");
    if (!method) return "{}";
    try {
      const py::object text = method();
      if (!py::isinstance<py::str>(text)) refuse("inspect() without a text", "JSON as a str");
      return text.cast<std::string>();
    } catch (py::error_already_set& error) {
      refuse(error.what(), "inspect() not to raise");
    }
  }

 private:
  py::object self() const {
    return py::cast(static_cast<const Policy*>(this), py::return_value_policy::reference);
  }

  [[noreturn]] void refuse(const std::string& got, const std::string& expected) const {
    throw Error(ErrorKind::state, "policy " + name(), got.substr(0, got.find('\n')), expected);
  }

  // body(method, view); methods that the class does not define are left out, but for plan.
  template <typename Body>
  void call(const char* name, const Body& body, const View& view) {
    py::gil_scoped_acquire gil;
    const py::function method = py::get_override(static_cast<const Policy*>(this), name);
    if (!method) {
      if (std::string(name) == "plan") refuse("no method plan", "plan(self, view) -> StepPlan");
      return;
    }
    const auto lent = std::make_shared<PyView>(view);
    try {
      body(method, py::cast(lent));
    } catch (py::error_already_set& error) {
      lent->expire();
      refuse(error.what(), std::string(name) + "() not to raise");
    } catch (...) {
      lent->expire();
      throw;
    }
    lent->expire();
  }
};

// A native policy as Python holds it. Checks the order of calls and that views show exactly the
// tasks that arrived, which native policies take for granted, until an engine takes the policy.
class NativePolicy : public Policy {
 public:
  explicit NativePolicy(std::unique_ptr<Policy> policy) : policy_(std::move(policy)) {}

  std::string name() const override { return policy().name(); }
  std::string inspect() const override { return policy().inspect(); }

  void on(const TaskEvent& event, const View& view) override {
    const size_t slot = static_cast<size_t>(event.slot);
    if (event.slot < 0 || slot >= view.tasks.size() || view.tasks[slot].id < 0) {
      refuse("slot", std::to_string(event.slot), "a slot of the view that holds a task");
    }
    const int64_t id = view.tasks[slot].id;
    if (ids_.size() <= slot) ids_.resize(slot + 1, -1);
    const bool arrives = event.kind == TaskEventKind::arrive;
    if (ids_[slot] != (arrives ? -1 : id)) {
      refuse(to_text(event.kind), "task " + std::to_string(id) + " in slot " + std::to_string(slot),
             arrives ? "a task in a slot that is not in use" : "a task that arrived there");
    }
    require_rows(view);
    ids_[slot] = arrives ? id : -1;
    proposed_ = false;
    policy().on(event, view);
  }

  StepPlan plan(const View& view) override {
    require_rows(view);
    size_t arrived = 0;
    for (int64_t id : ids_) arrived += id >= 0;
    if (arrived != view.live.size()) {
      refuse("view", std::to_string(view.live.size()) + " live tasks",
             std::to_string(arrived) + ", the tasks that arrived and did not finish");
    }
    plan_ = policy().plan(view);
    features_ = features_of(plan_, view);
    proposed_ = true;
    return plan_;
  }

  void commit(const StepPlan& plan, const StepOutcome& outcome, const View& view) override {
    if (!proposed_ || !(plan == plan_)) {
      refuse("commit", "a plan that was not the last proposed", "the result of the last plan()");
    }
    require_rows(view);
    for (int32_t slot : outcome.token_slots) {
      if (slot < 0 || static_cast<size_t>(slot) >= ids_.size() || ids_[slot] < 0) {
        refuse("token_slots", std::to_string(slot), "slots of live tasks");
      }
    }
    proposed_ = false;
    StepOutcome result = outcome;
    result.features = features_;
    policy().commit(plan, result, view);
  }

  std::unique_ptr<Policy> release() {
    policy();
    return std::move(policy_);
  }

 private:
  Policy& policy() const {
    if (!policy_) {
      refuse("policy", "one that an engine has taken", "a new one from make_policy");
    }
    return *policy_;
  }
  [[noreturn]] static void refuse(const char* field, const std::string& got,
                                  const std::string& expected) {
    throw Error(ErrorKind::state, field, got, expected);
  }
  void require_rows(const View& view) const {
    for (size_t slot = 0; slot < ids_.size(); ++slot) {
      if (ids_[slot] < 0) continue;
      if (slot >= view.tasks.size() || view.tasks[slot].id != ids_[slot]) {
        refuse("view",
               "slot " + std::to_string(slot) + " without task " + std::to_string(ids_[slot]),
               "every task that arrived and did not finish");
      }
    }
  }

  std::unique_ptr<Policy> policy_;
  std::vector<int64_t> ids_;  // by slot; -1: not in use
  StepPlan plan_;
  StepFeatures features_;
  bool proposed_ = false;
};

// Keeps a Python policy alive for an engine.
class PythonPolicyRef : public Policy {
 public:
  explicit PythonPolicyRef(const py::object& object)
      : object_(object), policy_(object.cast<Policy*>()) {}
  ~PythonPolicyRef() override {
    py::gil_scoped_acquire gil;
    object_ = py::object();
  }
  std::string name() const override { return policy_->name(); }
  void on(const TaskEvent& event, const View& view) override { policy_->on(event, view); }
  StepPlan plan(const View& view) override { return policy_->plan(view); }
  void commit(const StepPlan& plan, const StepOutcome& outcome, const View& view) override {
    policy_->commit(plan, outcome, view);
  }
  std::string inspect() const override { return policy_->inspect(); }

 private:
  py::object object_;
  Policy* policy_;
};

py::dict to_dict(const PolicyInfo& info) {
  py::list parameters;
  for (const PolicyParameter& p : info.parameters) {
    py::dict entry;
    entry["name"] = p.name;
    entry["default"] = p.default_value;
    entry["help"] = p.help;
    parameters.append(entry);
  }
  py::dict result;
  result["name"] = info.name;
  result["source"] = info.source;
  result["summary"] = info.summary;
  result["parameters"] = parameters;
  return result;
}

}  // namespace

std::unique_ptr<Policy> take_policy(const py::object& policy) {
  if (py::isinstance<py::str>(policy)) return make_policy(policy.cast<std::string>());
  if (py::isinstance<NativePolicy>(policy)) return policy.cast<NativePolicy&>().release();
  if (py::isinstance<Policy>(policy)) return std::make_unique<PythonPolicyRef>(policy);
  throw Error(ErrorKind::invalid_argument, "policy", py::repr(py::type::of(policy)),
              "a policy's name or a slicellm.Policy");
}

void bind_policy(py::module_& m) {
  bind_policy_view(m);
  py::class_<Policy, PythonPolicy, std::shared_ptr<Policy>>(
      m, "Policy",
      "A scheduler. Derive from it and define plan(view), and as needed on(kind, slot, view), "
      "commit(plan, duration, token_slots, view) and inspect().")
      .def(py::init<>())
      .def_property_readonly("name", &Policy::name)
      .def(
          "on",
          [](Policy& p, const std::string& kind, int32_t slot, const PyView& view) {
            p.on({parse_event(kind), slot}, view.get());
          },
          py::arg("kind"), py::arg("slot"), py::arg("view"))
      .def(
          "plan", [](Policy& p, const PyView& view) { return p.plan(view.get()); }, py::arg("view"))
      .def(
          "commit",
          [](Policy& p, const StepPlan& plan, double duration, std::vector<int32_t> token_slots,
             const PyView& view) {
            if (!(duration >= 0 && duration < 1e9)) {
              throw Error(ErrorKind::invalid_argument, "duration", py::str(py::float_(duration)),
                          "seconds of at least 0");
            }
            StepOutcome outcome;
            outcome.start = view.get().now - duration;
            outcome.duration = duration;
            outcome.token_slots = std::move(token_slots);
            p.commit(plan, outcome, view.get());
          },
          py::arg("plan"), py::arg("duration"), py::arg("token_slots"), py::arg("view"))
      .def("inspect", &Policy::inspect);
  py::class_<NativePolicy, Policy, std::shared_ptr<NativePolicy>>(m, "_NativePolicy");

  m.def(
      "make_policy",
      [](const std::string& text) { return std::make_shared<NativePolicy>(make_policy(text)); },
      py::arg("text"), "\"slice\" or \"slice:ratio=0.9,mask_layout=spread\".");
  m.def("list_policies", [] {
    py::list result;
    for (const PolicyInfo& info : list_policies()) result.append(to_dict(info));
    return result;
  });
  m.def("list_dispatchers", [] {
    py::list result;
    for (const PolicyInfo& info : list_dispatchers()) result.append(to_dict(info));
    return result;
  });
  m.def(
      "check_dispatcher",
      [](const std::string& text) {
        const double step = 1e-3;
        const auto latency = make_table_latency_model({&step, 1}, 0, 0);
        View machine;
        machine.latency = latency.get();
        make_dispatcher(text, 1, machine);
      },
      py::arg("text"), "Raises InvalidArgument for a name or parameters that no dispatcher has.");
  m.def(
      "check_plan",
      [](const StepPlan& plan, const PyView& view) { PlanChecker().check(plan, view.get()); },
      py::arg("plan"), py::arg("view"),
      "Raises StateError with the rule broken if `plan` cannot be applied to `view`.");
}

}  // namespace slicellm
