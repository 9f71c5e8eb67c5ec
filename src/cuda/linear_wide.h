#pragma once

#include "cuda/linear_arguments.h"
#include "cuda/linear_weights.h"
#include "cuda/ptx.h"

// The linear kernel for many tokens: a block of 8 warps computes 128 rows for up to 192 tokens,
// from units of packed weights and of activations that a pipeline of asynchronous copies brings to
// shared memory. The matrix steps of each result come in the order of the narrow kernel, and the
// sums of its slices are added in the same order, so the results are the same bits.
namespace slicellm::cuda {

constexpr int kWideWarps = 8;
constexpr int kWideTiles = 8;  // of 16 rows, a block
constexpr int kWideRows = kWideTiles * kTileRows;
constexpr int kLeastSharedKib = 99;  // that a block can have on any supported GPU

// kSharedKib: what the stages may take of the GPU's shared memory.
template <class Weights, int kBlockTokens, int kSharedKib>
struct WideShape {
  // Warps side by side over rows and over tokens, and what each computes. A warp with many rows and
  // many tokens reads the least shared memory; one with few rows decodes the fewest int weights.
  static constexpr int kRowWarps = kBlockTokens == 32 ? 8 : kBlockTokens == 192 ? 2 : 4;
  static constexpr int kTokenWarps = kWideWarps / kRowWarps;
  static constexpr int kTiles = kWideTiles / kRowWarps;
  static constexpr int kTokenTiles = kBlockTokens / kTokenWarps / 8;
  // A stage of the pipeline, in pieces of 16 bytes: one unit of weights of all tiles, of the
  // tokens, and the scales and offsets of its two blocks.
  static constexpr int kWeightPieces = kWideTiles * Weights::kLoads * 32;
  static constexpr int kTokenPieces = kBlockTokens * 8;
  static constexpr int kScalePieces = Weights::kScaled ? kBlocksPerUnit * kWideTiles * 4 : 0;
  static constexpr int kStagePieces = kWeightPieces + kTokenPieces + 2 * kScalePieces;
  static constexpr int kFitting = kSharedKib * 1024 / (kStagePieces * 16);
  static constexpr int kStages = kFitting < 8 ? kFitting : 8;
  // Floats from token to token of the results, which use the same memory later; 4 more than the
  // rows keep the lanes of a warp in different banks.
  static constexpr int kResultStride = kWideRows + 4;
  static constexpr int kStageBytes = kStages * kStagePieces * 16;
  static constexpr int kResultBytes = kBlockTokens * kResultStride * 4;
  static constexpr int kSharedBytes = kStageBytes > kResultBytes ? kStageBytes : kResultBytes;
  static_assert(kStages >= 2 && kSharedBytes <= kSharedKib * 1024);
};

// Where a lane finds 16 bytes of a token's unit: a quarter of a warp reads four neighbouring ones
// of two tokens, which this keeps in different banks.
__device__ inline int token_piece(int token, int piece) {
  return token * 8 + (piece ^ (token & 1) << 2);
}

template <class Weights, int kBlockTokens>
__device__ void fetch_stage(const LinearArguments& args, int unit, uint4* stage) {
  using Shape = WideShape<Weights, kBlockTokens, kLeastSharedKib>;  // of any size
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int tile = blockIdx.y * kWideTiles + warp;
  const int64_t known_tile = tile < args.tiles ? tile : 0;
  const uint4* weights =
      args.weights + (known_tile * args.units + unit) * Weights::kLoads * 32 + lane;
#pragma unroll
  for (int i = 0; i < Weights::kLoads; ++i) {
    cp_async_16(stage + (warp * Weights::kLoads + i) * 32 + lane, weights + i * 32,
                tile < args.tiles ? 16 : 0);
  }
  stage += Shape::kWeightPieces;
  const auto* input = static_cast<const typename Weights::Element*>(args.input);
#pragma unroll
  for (int i = 0; i < kBlockTokens / 32; ++i) {
    const int row = i * 32 + threadIdx.x / 8, piece = threadIdx.x % 8;
    const int token = blockIdx.x * kBlockTokens + row;
    const int64_t known_token = token < args.n ? token : 0;
    cp_async_16(stage + token_piece(row, piece),
                input + known_token * args.width + unit * kUnitColumns + piece * 8,
                token < args.n ? 16 : 0);
  }
  stage += Shape::kTokenPieces;
  if (Weights::kScaled && warp < (args.offsets == nullptr ? 2 : 4)) {
    // [scales, offsets][block][tile][4 pieces]
    const uint2* table = warp < 2 ? args.scales : args.offsets;
    const int group = (unit * kBlocksPerUnit + warp % 2) >> args.group_shift;
    const int scale_tile = blockIdx.y * kWideTiles + lane / 4;
    const int64_t known = scale_tile < args.tiles ? scale_tile : 0;
    cp_async_16(stage + warp * 32 + lane, table + (known * args.groups + group) * 8 + lane % 4 * 2,
                scale_tile < args.tiles ? 16 : 0);
  }
}

// gridDim.x: blocks of tokens, y: blocks of rows, z: 1, or args.slices, each slice's sums then
// being left in args.sums.
template <class Weights, int kBlockTokens, int kSharedKib>
__global__ void __launch_bounds__(kWideWarps * 32, kBlockTokens > 64 ? 1 : 2)
    wide_linear(LinearArguments args) {
  using Shape = WideShape<Weights, kBlockTokens, kSharedKib>;
  SLICELLM_DYNAMIC_SHARED(uint4, shared);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int g = lane / 4, t = lane % 4;
  const int first_tile = warp % Shape::kRowWarps * Shape::kTiles;
  const int first_token = warp / Shape::kRowWarps * Shape::kTokenTiles * 8;
  const bool split = gridDim.z > 1;
  const int begin = split ? blockIdx.z * args.slice_units : 0;
  const int slice_end = begin + args.slice_units;
  const int end = split && slice_end < args.units ? slice_end : args.units;

  if constexpr (Weights::kScaled) {
    const int zeros = args.offsets == nullptr ? Shape::kStages * Shape::kScalePieces : 0;
    for (int i = threadIdx.x; i < zeros; i += kWideWarps * 32) {
      uint4* stage = shared + i / Shape::kScalePieces * Shape::kStagePieces;
      stage[Shape::kStagePieces - 1 - i % Shape::kScalePieces] = make_uint4(0, 0, 0, 0);
    }
  }
#pragma unroll
  for (int i = 0; i < Shape::kStages - 1; ++i) {
    if (begin + i < end) {
      fetch_stage<Weights, kBlockTokens>(args, begin + i, shared + i * Shape::kStagePieces);
    }
    cp_async_commit();
  }

  float sums[Shape::kTiles][Shape::kTokenTiles][4] = {};
  float totals[Shape::kTiles][Shape::kTokenTiles][4] = {};
  int now = 0, next = Shape::kStages - 1;  // stages to compute and to fill
  int left = args.slice_units;
#pragma unroll 1
  for (int unit = begin; unit < end; ++unit) {
    cp_async_wait<Shape::kStages - 2>();
    __syncthreads();
    if (unit + Shape::kStages - 1 < end) {
      fetch_stage<Weights, kBlockTokens>(args, unit + Shape::kStages - 1,
                                         shared + next * Shape::kStagePieces);
    }
    cp_async_commit();
    const uint4* weights = shared + now * Shape::kStagePieces + lane;
    const uint4* tokens = shared + now * Shape::kStagePieces + Shape::kWeightPieces;
    const uint2* scales = reinterpret_cast<const uint2*>(tokens + Shape::kTokenPieces) + g;
#pragma unroll
    for (int b = 0; b < kBlocksPerUnit; ++b) {
      uint4 x[Shape::kTokenTiles];
#pragma unroll
      for (int j = 0; j < Shape::kTokenTiles; ++j) {
        x[j] = tokens[token_piece(first_token + 8 * j + g, 4 * b + t)];
      }
#pragma unroll
      for (int i = 0; i < Shape::kTiles; ++i) {
        const int tile = first_tile + i;
        uint4 packed[Weights::kLoads];
#pragma unroll
        for (int k = 0; k < Weights::kLoads; ++k) {
          packed[k] = weights[(tile * Weights::kLoads + k) * 32];
        }
        GroupScales group{};
        if (Weights::kScaled) {
          group.scales = scales[(b * kWideTiles + tile) * 8];
          group.offsets = scales[((kBlocksPerUnit + b) * kWideTiles + tile) * 8];
        }
        uint32_t a[2][4];
        Weights::decode(packed, b, group, a);
#pragma unroll
        for (int step = 0; step < 2; ++step) {
#pragma unroll
          for (int j = 0; j < Shape::kTokenTiles; ++j) {
            multiply_step<Weights>(x[j], step, a[step], sums[i][j]);
          }
        }
      }
    }
    now = now + 1 == Shape::kStages ? 0 : now + 1;
    next = next + 1 == Shape::kStages ? 0 : next + 1;
    if (--left > 0 && unit + 1 < end) continue;
    left = args.slice_units;
#pragma unroll
    for (int i = 0; i < Shape::kTiles; ++i) {
#pragma unroll
      for (int j = 0; j < Shape::kTokenTiles; ++j) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          totals[i][j][k] += sums[i][j][k];
          sums[i][j][k] = 0;
        }
      }
    }
  }

  // Through shared memory, [token][row], so that neighbouring threads store neighbouring rows.
  cp_async_wait<0>();
  __syncthreads();
  float* results = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int i = 0; i < Shape::kTiles; ++i) {
#pragma unroll
    for (int j = 0; j < Shape::kTokenTiles; ++j) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int token = first_token + 8 * j + 2 * t + k % 2;
        results[token * Shape::kResultStride + (first_tile + i) * kTileRows + g + 8 * (k / 2)] =
            totals[i][j][k];
      }
    }
  }
  __syncthreads();
#pragma unroll 1
  for (int i = threadIdx.x; i < kBlockTokens * kWideTiles * 8; i += kWideWarps * 32) {
    const int row = i % 8, tile = i / 8 % kWideTiles, token = i / 8 / kWideTiles;
    const int out_tile = blockIdx.y * kWideTiles + tile;
    const int out_token = blockIdx.x * kBlockTokens + token;
    if (out_tile >= args.tiles || out_token >= args.n) continue;
    const float* from = results + token * Shape::kResultStride + tile * kTileRows + row;
    if (split) {
      float* to = sums_of(args, blockIdx.z, out_token, out_tile, row);
      to[0] = from[0];
      to[8] = from[8];
    } else {
      store_products(args, out_token, out_tile, row, from[0], from[8]);
    }
  }
}

}  // namespace slicellm::cuda
