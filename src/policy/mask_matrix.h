#pragma once

#include <cstdint>
#include <vector>

namespace slicellm {

enum class MaskLayout {
  packed,  // row i has its ones in columns 0 .. v_i - 1 (as published)
  spread,  // row i has its ones in columns floor(k * columns / v_i), k = 0 .. v_i - 1
};

// SLICE's decode-mask matrix (arXiv 2510.18544): row = task, column = decode step of a cycle, 1 =
// takes part. Row i has v_i ones; there are max v columns. Every row has a one in column 0, and no
// column is empty. Nothing is stored but the rates.
class MaskMatrix {
 public:
  MaskMatrix() = default;
  // Throws Error(invalid_argument) unless `rates` are all >= 1 and sorted from high to low.
  MaskMatrix(std::vector<int32_t> rates, MaskLayout layout);

  const std::vector<int32_t>& rates() const { return rates_; }
  MaskLayout layout() const { return layout_; }
  int32_t rows() const { return static_cast<int32_t>(rates_.size()); }
  int32_t columns() const { return rates_.empty() ? 0 : rates_.front(); }

  // Does `row` take part in decode step `column`? O(1).
  bool at(int32_t row, int32_t column) const {
    const int64_t v = rates_[row], n = columns();
    if (layout_ == MaskLayout::packed) return column < v;
    // column = floor(k n / v) for some k  <=>  a multiple of n lies in [column v, column v + v).
    const int64_t past = column * v % n;
    return (past == 0 ? 0 : n - past) < v;
  }
  std::vector<int32_t> column(int32_t column) const;  // rows that take part, ascending

 private:
  std::vector<int32_t> rates_;  // [rows], from high to low
  MaskLayout layout_ = MaskLayout::packed;
};

// The duration of one cycle by the paper's formula: sum_i (v_i - v_{i+1}) l(i) with v_{n+1} = 0,
// for rates sorted from high to low; `step[i]` is l(i + 1) for i < rates.size().
double cycle_estimate(const std::vector<int32_t>& rates, const std::vector<double>& step);

}  // namespace slicellm
