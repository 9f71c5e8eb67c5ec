#pragma once

#include "cuda/kernel.h"
#include "cuda/linear.h"

// What the linear kernels are given, and how they store results.
namespace slicellm::cuda {

struct LinearArguments {
  const uint4* weights;
  const uint2* scales;   // [tile][group][8]
  const uint2* offsets;  // the same, or null
  const float* bias;     // [tiles][16], or null
  const void* input;     // [n, width]
  float* out;            // [n, outputs]
  float* sums;           // [slice][n][tiles * 16] when slices are spread over blocks
  int n, width, outputs;
  int tiles, units, slices, slice_units;
  int groups, group_shift;
  bool gated;
  Epilogue epilogue;
  float alpha;
};

// The sums of rows g and (8 floats on) g + 8 of a tile over one slice.
__device__ inline float* sums_of(const LinearArguments& args, int slice, int token, int tile,
                                 int g) {
  const int64_t row = static_cast<int64_t>(slice * args.n + token) * args.tiles + tile;
  return args.sums + row * kTileRows + g;
}

// Stores the products of one token with rows g and g + 8 of a tile. Products that meet a sum are
// fused by hand: the compiler's own choice could differ from kernel to kernel.
__device__ inline void store_products(const LinearArguments& args, int token, int tile, int g,
                                      float first, float second) {
  if (args.bias != nullptr) {
    first += args.bias[tile * kTileRows + g];
    second += args.bias[tile * kTileRows + g + 8];
  }
  float* out = args.out + static_cast<int64_t>(token) * args.outputs;
  if (args.gated) {
    const int row = tile * 8 + g;
    if (row < args.outputs) out[row] = first / (1.0f + expf(-first)) * second;
    return;
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = tile * kTileRows + g + 8 * half;
    float y = half == 0 ? first : second;
    if (row >= args.outputs) return;
    if (args.epilogue == Epilogue::add) {
      y = fmaf(args.alpha, out[row], y);
    } else if (args.epilogue == Epilogue::gelu_tanh) {
      const float cubic = fmaf(0.044715f * y * y, y, y);
      y = 0.5f * y * (1.0f + tanhf(0.79788456f * cubic));
    }
    out[row] = y;
  }
}

}  // namespace slicellm::cuda
