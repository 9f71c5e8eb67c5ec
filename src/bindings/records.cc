#include "bindings/records.h"

#include <algorithm>

namespace slicellm {
namespace {

template <typename T, typename Field>
py::array_t<T> column(const std::vector<StepRecord>& steps, Field field) {
  py::array_t<T> result(static_cast<py::ssize_t>(steps.size()));
  std::transform(steps.begin(), steps.end(), result.mutable_data(),
                 [field](const StepRecord& step) { return step.*field; });
  return result;
}

}  // namespace

py::dict steps_dict(const std::vector<StepRecord>& steps) {
  py::dict d;
  d["start"] = column<double>(steps, &StepRecord::start);
  d["duration"] = column<double>(steps, &StepRecord::duration);
  d["plan_seconds"] = column<double>(steps, &StepRecord::plan_seconds);
  d["overhead_seconds"] = column<double>(steps, &StepRecord::overhead_seconds);
  d["predicted"] = column<double>(steps, &StepRecord::predicted);
  d["decode_rows"] = column<int32_t>(steps, &StepRecord::decode_rows);
  d["prefill_tokens"] = column<int32_t>(steps, &StepRecord::prefill_tokens);
  d["prefill_rows"] = column<int32_t>(steps, &StepRecord::prefill_rows);
  d["padding_rows"] = column<int32_t>(steps, &StepRecord::padding_rows);
  d["padding_tokens"] = column<int32_t>(steps, &StepRecord::padding_tokens);
  return d;
}

py::list event_list(const std::vector<LogEvent>& events) {
  py::list result(events.size());
  for (size_t i = 0; i < events.size(); ++i) {
    const LogEvent& e = events[i];
    result[i] = py::make_tuple(e.t, e.task, to_string(e.kind), e.value);
  }
  return result;
}

}  // namespace slicellm
