#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "slicellm/tensor.h"

namespace slicellm {

// The matrices of one linear layer, stacked by rows, with their biases: what Device::pack is given,
// checked. Refers to the matrices and biases, which must outlive it.
class WeightStack {
 public:
  // Throws Error(invalid_argument) for no matrices; Error(unsupported), naming the tensor, for ones
  // of different dtype, width or group size, for data or biases that are too small, and for an odd
  // number of rows where they are `gated`.
  WeightStack(std::span<const Weight> matrices, std::span<const std::vector<float>> biases,
              bool gated);

  DType dtype() const { return matrices_.front().dtype; }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return matrices_.front().cols(); }
  int64_t groups() const { return matrices_.front().groups(); }  // of a row
  int64_t group_columns() const;                                 // of a group, at most cols()
  std::span<const Weight> matrices() const { return matrices_; }
  const std::string& name() const { return matrices_.front().name; }  // for messages

  struct Row {
    const Weight* matrix;
    int64_t row;  // of the matrix
  };
  Row row(int64_t stacked) const;

  // Stacked rows [begin, end) were read, see release_rows.
  void release(int64_t begin, int64_t end) const;

  std::vector<float> bias() const;  // [rows()], empty if no matrix has one

 private:
  const std::vector<float>* bias_of(size_t matrix) const;

  std::span<const Weight> matrices_;
  std::span<const std::vector<float>> biases_;
  std::vector<int64_t> first_row_;  // of each matrix in the stack
  int64_t rows_ = 0;
};

// The zero point z of minimum = -z * scale, when it is an integer 0..255; else -1.
int zero_point(float scale, float minimum);

}  // namespace slicellm
