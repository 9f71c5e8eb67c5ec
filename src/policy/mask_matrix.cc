#include "policy/mask_matrix.h"

#include <string>
#include <utility>

#include "slicellm/error.h"

namespace slicellm {

MaskMatrix::MaskMatrix(std::vector<int32_t> rates, MaskLayout layout)
    : rates_(std::move(rates)), layout_(layout) {
  for (size_t i = 0; i < rates_.size(); ++i) {
    if (rates_[i] < 1 || (i > 0 && rates_[i] > rates_[i - 1])) {
      throw Error(ErrorKind::invalid_argument, "rates[" + std::to_string(i) + "]",
                  std::to_string(rates_[i]), "rates of at least 1, sorted from high to low");
    }
  }
}

std::vector<int32_t> MaskMatrix::column(int32_t column) const {
  std::vector<int32_t> taking_part;
  for (int32_t row = 0; row < rows(); ++row) {
    if (at(row, column)) taking_part.push_back(row);
  }
  return taking_part;
}

double cycle_estimate(const std::vector<int32_t>& rates, const std::vector<double>& step) {
  double f = 0;
  for (size_t i = 0; i < rates.size(); ++i) {
    const int32_t next = i + 1 < rates.size() ? rates[i + 1] : 0;
    f += (rates[i] - next) * step[i];
  }
  return f;
}

}  // namespace slicellm
