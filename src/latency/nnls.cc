#include "latency/nnls.h"

#include <algorithm>
#include <cmath>

namespace slicellm {
namespace {

// Keeps collinear columns solvable; relative to a unit diagonal.
constexpr double kRidge = 1e-12;
constexpr double kTolerance = 1e-11;

// Solves the equations of the columns in `set` (Cholesky). Other entries of the result are 0.
NnlsVector solve_subset(const NnlsMatrix& a, const NnlsVector& b,
                        const std::array<size_t, kNnlsSize>& set, size_t count) {
  NnlsMatrix factor;
  NnlsVector y;
  for (size_t i = 0; i < count; ++i) {
    for (size_t j = 0; j <= i; ++j) {
      double sum = a[set[i]][set[j]] + (i == j ? kRidge : 0);
      for (size_t k = 0; k < j; ++k) sum -= factor[i][k] * factor[j][k];
      factor[i][j] = i == j ? std::sqrt(std::max(sum, kRidge)) : sum / factor[j][j];
    }
    double sum = b[set[i]];
    for (size_t k = 0; k < i; ++k) sum -= factor[i][k] * y[k];
    y[i] = sum / factor[i][i];
  }
  NnlsVector x{};
  for (size_t i = count; i-- > 0;) {
    double sum = y[i];
    for (size_t k = i + 1; k < count; ++k) sum -= factor[k][i] * x[set[k]];
    x[set[i]] = sum / factor[i][i];
  }
  return x;
}

}  // namespace

NnlsVector solve_nnls(const NnlsMatrix& matrix, const NnlsVector& vector) {
  NnlsVector scale;
  for (size_t i = 0; i < kNnlsSize; ++i) {
    scale[i] = matrix[i][i] > 0 ? 1 / std::sqrt(matrix[i][i]) : 0;
  }
  NnlsMatrix a;
  NnlsVector b;
  double b_norm = 0;
  for (size_t i = 0; i < kNnlsSize; ++i) {
    for (size_t j = 0; j <= i; ++j) a[i][j] = a[j][i] = matrix[i][j] * scale[i] * scale[j];
    b[i] = vector[i] * scale[i];
    b_norm = std::max(b_norm, std::abs(b[i]));
  }

  NnlsVector x{};
  std::array<bool, kNnlsSize> passive{};
  std::array<bool, kNnlsSize> refused{};  // entered with a step of rounding size; not tried again
  std::array<size_t, kNnlsSize> set;
  for (size_t round = 0; round < 10 * kNnlsSize; ++round) {
    // The steepest descent among the variables held at 0.
    size_t entering = kNnlsSize;
    double steepest = kTolerance * b_norm;
    for (size_t j = 0; j < kNnlsSize; ++j) {
      if (passive[j] || refused[j] || scale[j] == 0) continue;
      double gradient = b[j];
      for (size_t k = 0; k < kNnlsSize; ++k) gradient -= a[j][k] * x[k];
      if (gradient > steepest) {
        steepest = gradient;
        entering = j;
      }
    }
    if (entering == kNnlsSize) break;
    passive[entering] = true;

    for (size_t inner = 0; inner <= kNnlsSize; ++inner) {
      size_t count = 0;
      for (size_t j = 0; j < kNnlsSize; ++j) {
        if (passive[j]) set[count++] = j;
      }
      const NnlsVector z = solve_subset(a, b, set, count);
      // Walk from x towards z until a variable would turn negative; fix that one at 0.
      double step = 1;
      size_t blocking = kNnlsSize;
      for (size_t i = 0; i < count; ++i) {
        const size_t j = set[i];
        const double to_zero = z[j] > 0 ? 2 : x[j] > 0 ? x[j] / (x[j] - z[j]) : 0;
        if (to_zero < step) {
          step = to_zero;
          blocking = j;
        }
      }
      for (size_t i = 0; i < count; ++i) {
        const size_t j = set[i];
        x[j] = std::max(0.0, x[j] + step * (z[j] - x[j]));
      }
      if (blocking == kNnlsSize) break;
      x[blocking] = 0;
      passive[blocking] = false;
      refused[blocking] = blocking == entering;
    }
    if (passive[entering]) refused.fill(false);
  }
  for (size_t i = 0; i < kNnlsSize; ++i) x[i] *= scale[i];
  return x;
}

}  // namespace slicellm
