#pragma once

#include <array>
#include <cstddef>

namespace slicellm {

// Non-negative least squares on normal equations, after Lawson and Hanson, "Solving Least Squares
// Problems" (1974), chapter 23.
constexpr size_t kNnlsSize = 19;
using NnlsVector = std::array<double, kNnlsSize>;
using NnlsMatrix = std::array<NnlsVector, kNnlsSize>;  // symmetric; the lower triangle is read

// The x >= 0 that minimises x'Ax/2 - b'x for a positive semidefinite A. Columns are scaled to unit
// diagonal first; a column with zero diagonal gets x = 0.
NnlsVector solve_nnls(const NnlsMatrix& a, const NnlsVector& b);

}  // namespace slicellm
