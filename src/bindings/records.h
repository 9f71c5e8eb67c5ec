#pragma once

#include <vector>

#include "bindings/bindings.h"
#include "slicellm/engine.h"

namespace slicellm {

// Columns of the step records, by field name.
py::dict steps_dict(const std::vector<StepRecord>& steps);
// Tuples (t, task, kind, value).
py::list event_list(const std::vector<LogEvent>& events);

}  // namespace slicellm
