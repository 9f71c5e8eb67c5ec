#include <algorithm>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "policy/mask_matrix.h"
#include "slicellm/error.h"

namespace slicellm {
namespace {

MaskLayout parse_layout(const std::string& text) {
  if (text == "packed") return MaskLayout::packed;
  if (text == "spread") return MaskLayout::spread;
  throw Error(ErrorKind::invalid_argument, "layout", "\"" + text + "\"", "packed or spread");
}

py::array_t<uint8_t> to_numpy(const MaskMatrix& matrix) {
  constexpr int64_t kMaxCells = 100000000;  // 100 MB: more is no matrix to look at
  if (int64_t{matrix.rows()} * matrix.columns() > kMaxCells) {
    throw Error(ErrorKind::resource, "matrix",
                std::to_string(matrix.rows()) + " x " + std::to_string(matrix.columns()),
                "at most " + std::to_string(kMaxCells) + " cells");
  }
  py::array_t<uint8_t> cells({matrix.rows(), matrix.columns()});
  auto out = cells.mutable_unchecked<2>();
  for (int32_t i = 0; i < matrix.rows(); ++i) {
    for (int32_t j = 0; j < matrix.columns(); ++j) out(i, j) = matrix.at(i, j);
  }
  return cells;
}

// A line a row: its rate, then a 1 or a dot for each column.
std::string to_text(const MaskMatrix& matrix) {
  constexpr int32_t kMaxColumns = 100;  // fits a wide terminal
  const int32_t shown = std::min(matrix.columns(), kMaxColumns);
  const size_t width = matrix.rows() ? std::to_string(matrix.rates().front()).size() : 0;
  std::string text;
  for (int32_t i = 0; i < matrix.rows(); ++i) {
    const std::string rate = std::to_string(matrix.rates()[i]);
    if (i) text += '\n';
    text.append(width - rate.size(), ' ').append(rate).append("  ");
    for (int32_t j = 0; j < shown; ++j) text += matrix.at(i, j) ? '1' : '.';
    if (shown < matrix.columns()) text += "...";
  }
  return text;
}

}  // namespace

void bind_mask_matrix(py::module_& m) {
  py::class_<MaskMatrix>(m, "MaskMatrix",
                         "SLICE's decode-mask matrix: row = task, column = decode step of a "
                         "cycle, 1 = takes part. `rates` are ones a row, from high to low.")
      .def(py::init([](std::vector<int32_t> rates, const std::string& layout) {
             return MaskMatrix(std::move(rates), parse_layout(layout));
           }),
           py::arg("rates"), py::arg("layout") = "packed")
      .def_property_readonly("rows", &MaskMatrix::rows)
      .def_property_readonly("columns", &MaskMatrix::columns)
      .def_property_readonly("rates",
                             [](const MaskMatrix& a) { return py::tuple(py::cast(a.rates())); })
      .def(
          "column",
          [](const MaskMatrix& matrix, int32_t j) {
            if (j < 0 || j >= matrix.columns()) {
              throw Error(ErrorKind::invalid_argument, "column", std::to_string(j),
                          "0 to " + std::to_string(matrix.columns() - 1));
            }
            return matrix.column(j);
          },
          py::arg("j"), "Rows that take part in decode step j, ascending.")
      .def("to_numpy", to_numpy, "[rows, columns] of 0 and 1.")
      .def("__str__", to_text);
  m.def(
      "cycle_estimate_ms",
      [](const std::vector<int32_t>& rates, const std::vector<double>& step_ms) {
        MaskMatrix(rates, MaskLayout::packed);  // refuses rates out of order
        if (step_ms.size() < rates.size()) {
          throw Error(ErrorKind::invalid_argument, "step_ms",
                      std::to_string(step_ms.size()) + " durations",
                      "one for each number of rows up to " + std::to_string(rates.size()));
        }
        return cycle_estimate(rates, step_ms);
      },
      py::arg("rates"), py::arg("step_ms"),
      "Duration of one cycle by SLICE's formula; step_ms[i] is a decode step of i + 1 rows.");
}

}  // namespace slicellm
