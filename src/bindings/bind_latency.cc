#include "bindings/arguments.h"
#include "slicellm/error.h"
#include "slicellm/latency_model.h"
#include "slicellm/model.h"

namespace slicellm {
namespace {

StepFeatures make_features(int32_t tokens, int32_t rows, double context, double chunk_work,
                           double swap_bytes, int32_t prefill_tokens) {
  return {.tokens = tokens,
          .rows = rows,
          .context = context,
          .chunk_work = chunk_work,
          .swap_bytes = swap_bytes,
          .prefill_tokens = prefill_tokens};
}

std::unique_ptr<LatencyModel> from_decode_table(const std::vector<double>& milliseconds,
                                                double prefill_ms, double prefill_ms_per_token) {
  std::vector<double> seconds = milliseconds;
  for (double& value : seconds) value /= 1000;
  return make_table_latency_model(seconds, prefill_ms / 1000, prefill_ms_per_token / 1000);
}

// samples: rows of (tokens, rows, context, chunk_work, swap_bytes, prefill_tokens, ms).
std::unique_ptr<LatencyModel> fit(
    const std::vector<std::tuple<int32_t, int32_t, double, double, double, int32_t, double>>& rows,
    const std::string& provenance) {
  std::vector<LatencySample> samples;
  for (const auto& [tokens, logit_rows, context, chunk_work, swap_bytes, prefill, ms] : rows) {
    samples.push_back(
        {make_features(tokens, logit_rows, context, chunk_work, swap_bytes, prefill), ms / 1000});
  }
  return fit_latency_model(samples, provenance);
}

using ProgressCallback = std::function<void(uint64_t, uint64_t)>;

std::unique_ptr<LatencyModel> calibrate_model(const std::shared_ptr<Model>& model,
                                              const py::object& seconds,
                                              const std::optional<ProgressCallback>& progress) {
  const double time = to_number(seconds, "seconds");
  ProgressCallback report = [&progress](uint64_t done, uint64_t total) {
    py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();  // Ctrl-C
    if (progress) (*progress)(done, total);
  };
  py::gil_scoped_release release;
  return calibrate(model, time, report);
}

}  // namespace

void bind_latency(py::module_& m) {
  py::class_<LatencyModel>(m, "LatencyModel",
                           "Predicts how long a step takes. Fitted by `calibrate` or `fit`, or "
                           "read from a published table; corrects itself in an engine.")
      .def_static("from_json", &latency_model_from_json, py::arg("text"))
      .def_static(
          "from_decode_table", &from_decode_table, py::arg("milliseconds"),
          py::arg("prefill_ms") = 20.0, py::arg("prefill_ms_per_token") = 0.4,
          "milliseconds[b - 1] is a decode step of b rows, taken as it is. Beyond the table "
          "the mean slope goes on; context costs nothing.")
      .def_static("fit", &fit, py::arg("samples"), py::arg("provenance") = "",
                  "Fits measured steps: rows of (tokens, rows, context, chunk_work, swap_bytes, "
                  "prefill_tokens, ms).")
      .def("to_json", &LatencyModel::to_json)
      .def(
          "decode_step_ms",
          [](const LatencyModel& model, int32_t rows, double mean_context) {
            return model.decode_step(rows, mean_context) * 1000;
          },
          py::arg("rows"), py::arg("mean_context") = 0.0)
      .def(
          "predict_ms",
          [](const LatencyModel& model, int32_t tokens, int32_t rows, double context,
             double chunk_work, double swap_bytes, int32_t prefill_tokens) {
            const Prediction p = model.predict(
                make_features(tokens, rows, context, chunk_work, swap_bytes, prefill_tokens));
            return py::make_tuple(p.median * 1000, p.quantile * 1000);
          },
          py::arg("tokens"), py::arg("rows"), py::arg("context") = 0.0, py::arg("chunk_work") = 0.0,
          py::arg("swap_bytes") = 0.0, py::arg("prefill_tokens") = 0, "Median and 95th percentile.")
      .def(
          "observe",
          [](LatencyModel& model, double ms, int32_t tokens, int32_t rows, double context,
             double chunk_work, double swap_bytes, int32_t prefill_tokens) {
            model.observe(
                make_features(tokens, rows, context, chunk_work, swap_bytes, prefill_tokens),
                ms / 1000);
          },
          py::arg("ms"), py::arg("tokens"), py::arg("rows"), py::arg("context") = 0.0,
          py::arg("chunk_work") = 0.0, py::arg("swap_bytes") = 0.0, py::arg("prefill_tokens") = 0);
  m.def("calibrate", &calibrate_model, py::arg("model"), py::arg("seconds") = 10.0,
        py::arg("progress") = py::none(),
        "Measures decode batches, contexts and prefill chunks of a model on this machine for about "
        "`seconds`; progress(done_ms, total_ms). The model must not run elsewhere meanwhile.");
}

}  // namespace slicellm
