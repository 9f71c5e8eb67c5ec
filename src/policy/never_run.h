#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "policy/step_builder.h"

namespace slicellm {

// The tasks that could never run, not even alone: kept apart from the others, and rejected by the
// next plan.
class NeverRun {
 public:
  // Takes the task that arrived at `slot`, if it is one; says whether it did.
  bool arrive(int32_t slot, const View& view) {
    if (never_runs(view.tasks[slot], view).empty()) return false;
    slots_.push_back(slot);
    return true;
  }
  // Forgets the task at `slot`, which ends; says whether it was one.
  bool finish(int32_t slot) { return std::erase(slots_, slot) > 0; }
  // Ends them all.
  void reject(StepBuilder& step) const {
    const View& view = step.view();
    for (int32_t slot : slots_) step.reject(slot, never_runs(view.tasks[slot], view));
  }

 private:
  std::vector<int32_t> slots_;
};

}  // namespace slicellm
