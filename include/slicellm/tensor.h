#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "slicellm/dtype.h"

namespace slicellm {

// A read-only tensor in host memory: a vector, or a matrix [rows = out, cols = in], row-major.
//
// float types: `data` holds rows*cols elements.
// int8:        `data` holds rows*cols codes 0..255.
// int4:        `data` holds ceil(rows*cols/2) bytes; flat element i sits in byte i/2, even i in the
//              HIGH nibble, odd i in the LOW nibble (fastllm's order; no padding per row or group).
// A quantised element of row r, column c decodes to
//     minimum[r*groups + g] + scale[r*groups + g] * code,   g = c / group_size.
// The last group of a row may be short.
struct Weight {
  std::string name;
  DType dtype = DType::float32;
  std::vector<int64_t> shape;  // logical shape as stored; 1-D or 2-D for everything we load
  int64_t group_size = 0;      // input columns per scale; equals cols() for per-row quantisation
  const void* data = nullptr;
  size_t data_bytes = 0;
  std::vector<float> scale;           // [rows * groups()], empty for float types
  std::vector<float> minimum;         // [rows * groups()], empty for float types
  std::shared_ptr<const void> owner;  // keeps `data` (a mapping or a buffer) alive
  bool mapped = false;                // `data` lies in a file's mapping

  int64_t rows() const { return shape.size() == 2 ? shape[0] : 1; }
  int64_t cols() const { return shape.empty() ? 0 : shape.back(); }
  int64_t groups() const { return group_size > 0 ? (cols() + group_size - 1) / group_size : 1; }
};

// Rows [begin, end) were read and need not stay in this process's memory: where they lie in a
// file's mapping their pages are given back, and read from the file again should they be used
// again.
void release_rows(const Weight& w, int64_t begin, int64_t end);

// Decodes elements [first, first+count) of the flat tensor to float32 (exact for float types).
void decode(const Weight& w, int64_t first, int64_t count, float* out);

// Converts a tensor to `to`; one that already has that type is returned as it is, everything else
// owns its memory. Int types need a matrix [rows, cols]; each group of a row gets the grid
//     minimum + scale * code,   minimum = -scale * z, z an integer code
// that spans the group's range with 0 in it, so every element is off by at most half a scale.
// Scales are exactly representable in float16, so that devices may store them in 2 bytes. Constant
// rows and groups decode exactly to their (float16-rounded) constant, never NaN. Rows are shared
// out among `threads`. Throws Error(format) naming the tensor for NaN or infinity in it,
// Error(unsupported) for values that the type cannot hold.
Weight convert(const Weight& w, const DTypeSpec& to, int threads = 1);

}  // namespace slicellm
