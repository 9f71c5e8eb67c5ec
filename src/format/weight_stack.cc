#include "format/weight_stack.h"

#include <algorithm>
#include <cmath>

#include "slicellm/error.h"

namespace slicellm {
namespace {

[[noreturn]] void throw_shape(const Weight& w, const std::string& got, const std::string& want) {
  throw Error(ErrorKind::unsupported, w.name.empty() ? "weight" : w.name, got, want);
}

// A matrix of the stack must fit the first one and hold all the data that it declares.
void check_matrix(const Weight& w, const Weight& first, const std::vector<float>* bias) {
  if (w.shape.size() != 2 || w.rows() < 1 || w.cols() < 1) {
    throw_shape(w, std::to_string(w.shape.size()) + " dimensions",
                "a matrix with rows and columns");
  }
  if (w.dtype != first.dtype || w.cols() != first.cols() || w.group_size != first.group_size) {
    throw_shape(w, to_string(w.dtype) + " of width " + std::to_string(w.cols()),
                "the dtype, group size and width of the matrix that it is stacked with (" +
                    to_string(first.dtype) + ", " + std::to_string(first.cols()) + ")");
  }
  const auto elements = static_cast<size_t>(w.rows()) * static_cast<size_t>(w.cols());
  const size_t needed = (elements * dtype_bits(w.dtype) + 7) / 8;
  if (w.data == nullptr || w.data_bytes < needed) {
    throw_shape(w, std::to_string(w.data_bytes) + " bytes", std::to_string(needed) + " bytes");
  }
  if (is_quantized(w.dtype)) {
    const auto scales = static_cast<size_t>(w.rows() * w.groups());
    if (w.scale.size() != scales || w.minimum.size() != scales) {
      throw_shape(w, std::to_string(w.scale.size()) + " scales", std::to_string(scales));
    }
  }
  if (bias != nullptr && static_cast<int64_t>(bias->size()) != w.rows()) {
    throw_shape(w, "a bias of " + std::to_string(bias->size()), std::to_string(w.rows()));
  }
}

}  // namespace

WeightStack::WeightStack(std::span<const Weight> matrices,
                         std::span<const std::vector<float>> biases, bool gated)
    : matrices_(matrices), biases_(biases) {
  if (matrices.empty()) {
    throw Error(ErrorKind::invalid_argument, "matrices", "none", "at least one matrix");
  }
  for (size_t i = 0; i < matrices.size(); ++i) {
    check_matrix(matrices[i], matrices.front(), bias_of(i));
    first_row_.push_back(rows_);
    rows_ += matrices[i].rows();
  }
  if (gated && rows_ % 2 != 0) {
    throw_shape(matrices.front(), std::to_string(rows_) + " rows",
                "an even number of gate and up rows");
  }
}

int64_t WeightStack::group_columns() const {
  const int64_t size = matrices_.front().group_size;
  return size <= 0 ? cols() : std::min(size, cols());
}

WeightStack::Row WeightStack::row(int64_t stacked) const {
  const size_t m =
      std::upper_bound(first_row_.begin(), first_row_.end(), stacked) - first_row_.begin() - 1;
  return {&matrices_[m], stacked - first_row_[m]};
}

void WeightStack::release(int64_t begin, int64_t end) const {
  for (size_t m = 0; m < matrices_.size(); ++m) {
    const int64_t first = std::max<int64_t>(begin - first_row_[m], 0);
    const int64_t last = std::min(end - first_row_[m], matrices_[m].rows());
    if (first < last) release_rows(matrices_[m], first, last);
  }
}

const std::vector<float>* WeightStack::bias_of(size_t matrix) const {
  return matrix < biases_.size() && !biases_[matrix].empty() ? &biases_[matrix] : nullptr;
}

std::vector<float> WeightStack::bias() const {
  std::vector<float> all(static_cast<size_t>(rows_));
  bool any = false;
  for (size_t i = 0; i < matrices_.size(); ++i) {
    const std::vector<float>* bias = bias_of(i);
    if (bias == nullptr) continue;
    any = true;
    std::copy(bias->begin(), bias->end(), all.begin() + first_row_[i]);
  }
  if (!any) all.clear();
  return all;
}

int zero_point(float scale, float minimum) {
  if (minimum == 0) return 0;
  const float zero = std::nearbyint(-minimum / scale);
  if (!(zero >= 0 && zero <= 255)) return -1;
  return std::abs(minimum + zero * scale) <= 3e-7f * std::abs(minimum) ? static_cast<int>(zero)
                                                                       : -1;
}

}  // namespace slicellm
