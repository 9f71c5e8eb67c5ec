#include "bindings/records.h"

#include <algorithm>
#include <functional>

namespace slicellm {
namespace {

template <typename T, typename Field>  // a member, or a function of a record
py::array_t<T> column(const std::vector<StepRecord>& steps, Field field) {
  py::array_t<T> result(static_cast<py::ssize_t>(steps.size()));
  std::transform(steps.begin(), steps.end(), result.mutable_data(),
                 [field](const StepRecord& step) { return std::invoke(field, step); });
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
  d["tokens"] = column<int32_t>(steps, [](const StepRecord& s) { return s.features.tokens; });
  d["rows"] = column<int32_t>(steps, [](const StepRecord& s) { return s.features.rows; });
  d["context"] = column<double>(steps, [](const StepRecord& s) { return s.features.context; });
  d["chunk_work"] =
      column<double>(steps, [](const StepRecord& s) { return s.features.chunk_work; });
  d["swap_bytes"] =
      column<double>(steps, [](const StepRecord& s) { return s.features.swap_bytes; });
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
