#pragma once

#include <memory>
#include <vector>

#include "bindings/bindings.h"
#include "slicellm/policy.h"

namespace slicellm {

// A View as Python sees it: one made in Python owns its rows; one that the engine lends to a policy
// written in Python is valid during the call only.
class PyView {
 public:
  explicit PyView(const View& borrowed) : view_(&borrowed) {}
  // Takes rows and a latency model (kept alive). Fields of `view` that are spans are set here;
  // rows with KV but without blocks get the blocks that their cached tokens need.
  PyView(std::vector<TaskView> tasks, py::object latency, const View& view);
  PyView(const PyView&) = delete;
  // Its rows and latency model as they are now, to be kept for as long as one likes.
  std::shared_ptr<PyView> copy() const;

  const View& get() const;  // throws Error(state) after the call it was lent for
  void expire() { view_ = nullptr; }
  const TaskView& row(int32_t slot) const;  // throws Error(invalid_argument) out of range

 private:
  std::vector<TaskView> tasks_;
  std::vector<int32_t> live_;
  py::object latency_;
  View own_;
  const View* view_ = nullptr;
};

// Registers TaskView, View and StepPlan.
void bind_policy_view(py::module_& m);

}  // namespace slicellm
