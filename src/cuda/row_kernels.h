#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "slicellm/dtype.h"
#include "slicellm/ops.h"

// Kernels on rows of activations. Matrices are row-major in device memory; all launches are on
// `stream`. What a row becomes depends on the row and its width alone.
namespace slicellm::cuda {

// The 16-bit type in which activations meet a linear layer's weights.
enum class InputType { float16, bfloat16 };

struct DeviceNorm {
  NormKind kind = NormKind::rms;
  float eps = 0;
  const float* weight = nullptr;  // [width]
  const float* bias = nullptr;    // [width] for layer
};

// Rows on their way into a linear layer.
struct RowInput {
  const float* x = nullptr;       // [*, width]
  const int32_t* rows = nullptr;  // [n] rows of x in device memory, or null for rows 0..n-1
  int64_t n = 0;
  int64_t width = 0;
};
struct RowOutput {
  InputType type = InputType::float16;
  void* out = nullptr;  // [n, stride]; columns from `width` on become zero
  int64_t stride = 0;   // a multiple of 4
};

// out = norm(x[rows]) in 16 bits; if `normed` is set, [n, width] receives it in float32, and may be
// x. Finite values beyond float16's range become its largest.
void norm_rows(cudaStream_t stream, const RowInput& input, const DeviceNorm& norm, float* normed,
               const RowOutput& output);

// The same without a norm.
void convert_rows(cudaStream_t stream, const RowInput& input, const RowOutput& output);

// A table of embeddings as tensor.h lays it out, in device memory.
struct DeviceTable {
  DType dtype = DType::float32;
  int64_t cols = 0;
  int64_t group_size = 0, groups = 0;  // int types: columns per scale, scales per row
  const void* data = nullptr;
  const float* scale = nullptr;    // [rows, groups]
  const float* minimum = nullptr;  // [rows, groups]
};

// x[n, cols] = table[ids]; ids in device memory. Exactly what `decode` gives. An id of -1 - k
// stands for drawn[k], in device memory too: 0 where that is negative.
void embed_rows(cudaStream_t stream, const DeviceTable& table, const int32_t* ids,
                const int32_t* drawn, int64_t n, float* x);

}  // namespace slicellm::cuda
