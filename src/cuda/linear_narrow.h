#pragma once

#include "cuda/linear_arguments.h"
#include "cuda/linear_weights.h"
#include "cuda/ptx.h"

// The linear kernel for few tokens, bound by the reading of the weights: every weight is read once,
// straight into the registers of the warp that multiplies it, 4 KiB a warp in flight. A warp takes
// one tile of 16 rows and one slice of columns; the slices of a tile are warps of one block and
// meet in shared memory. Activations come through L1, where the block's tiles share them.
namespace slicellm::cuda {

constexpr int kNarrowWarps = 8;

template <class Weights, int kTokenTiles>
struct NarrowShape {
  static constexpr int kDepth = 8 / Weights::kLoads;                    // units in flight
  static constexpr int kTokenDepth = kDepth < 4 / kTokenTiles ? kDepth  // units of tokens in flight
                                                              : 4 / kTokenTiles;
  static constexpr int kGroups = kDepth * kBlocksPerUnit;  // most groups that kDepth units touch
  static constexpr int kTokens = 8 * kTokenTiles;
  // Shared memory: sums of the warps, then each warp's scales and offsets, double-buffered.
  static constexpr int kSums = kNarrowWarps * kTokens * kTileRows;                       // floats
  static constexpr int kScales = Weights::kScaled ? kNarrowWarps * 4 * kGroups * 8 : 0;  // uint2
  static constexpr int kSharedBytes = kSums * 4 + kScales * 8;
};

// The scales of one tile, brought to shared memory by the warp, kDepth units at a time and as far
// ahead. `Shape` is a NarrowShape.
template <class Shape>
class NarrowScales {
 public:
  __device__ NarrowScales(const LinearArguments& args, int tile, uint2* shared, int lane)
      : scales_(args.scales + static_cast<int64_t>(tile) * args.groups * 8),
        offsets_(args.offsets),
        shared_(shared),
        shift_(args.group_shift),
        groups_(args.groups),
        lane_(lane) {
    if (offsets_ != nullptr) offsets_ += static_cast<int64_t>(tile) * args.groups * 8;
  }

  // Before the first fetch: offsets that there are none of are zero.
  __device__ void clear() {
    if (offsets_ != nullptr) return;
    for (int i = lane_; i < 2 * kBuffer; i += 32) {
      if (i % kBuffer >= kOffsets) shared_[i] = make_uint2(0, 0);
    }
  }

  // Starts the copies for units from `unit` on into buffer `buffer`; a group of cp.async.
  __device__ void fetch(int unit, int buffer) {
    const int first = unit * kBlocksPerUnit >> shift_;
    const int last = ((unit + Shape::kDepth) * kBlocksPerUnit - 1) >> shift_;
    const int pieces = ((last < groups_ ? last + 1 : groups_) - first) * 4;  // of 16 bytes
    uint2* to = shared_ + buffer * kBuffer;
    for (int i = lane_; i < pieces; i += 32) {
      cp_async_16(to + i * 2, scales_ + first * 8 + i * 2);
      if (offsets_ != nullptr) {
        cp_async_16(to + kOffsets + i * 2, offsets_ + first * 8 + i * 2);
      }
    }
    cp_async_commit();
  }

  // Turns to those fetched for units from `unit` on.
  __device__ void select(int unit, int buffer, int g) {
    const int block = unit * kBlocksPerUnit;
    phase_ = block - (block >> shift_ << shift_);
    selected_ = shared_ + buffer * kBuffer + g;
  }

  // Those of the block `ahead` of the selected unit's first.
  __device__ GroupScales get(int ahead) const {
    const uint2* from = selected_ + ((phase_ + ahead) >> shift_) * 8;
    return {from[0], from[kOffsets]};
  }

 private:
  static constexpr int kOffsets = Shape::kGroups * 8, kBuffer = 2 * kOffsets;

  const uint2* scales_;
  const uint2* offsets_;
  uint2* shared_;  // [2 buffers][scales, offsets][kGroups][8]
  int shift_, groups_, lane_;
  const uint2* selected_ = nullptr;
  int phase_ = 0;
};

template <class Weights, int kTokenTiles>
__global__ void __launch_bounds__(kNarrowWarps * 32, 2) narrow_linear(LinearArguments args) {
  using Shape = NarrowShape<Weights, kTokenTiles>;
  constexpr int kDepth = Shape::kDepth, kTokenDepth = Shape::kTokenDepth;
  SLICELLM_DYNAMIC_SHARED(float, shared);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int g = lane / 4, t = lane % 4;
  const int block_tiles = kNarrowWarps / args.slices;
  const int tile = blockIdx.x * block_tiles + warp / args.slices;
  const int begin = warp % args.slices * args.slice_units;
  const int left = tile < args.tiles ? args.units - begin : 0;
  const int count = left < args.slice_units ? left : args.slice_units;  // below 1: an empty slice

  const uint4* weights = args.weights +
                         (static_cast<int64_t>(tile) * args.units + begin) * Weights::kLoads * 32 +
                         lane;
  uint4 units[kDepth][Weights::kLoads];
#pragma unroll
  for (int i = 0; i < kDepth; ++i) {
    if (i < count) {
#pragma unroll
      for (int j = 0; j < Weights::kLoads; ++j) {
        units[i][j] = load_stream_16(weights + (i * Weights::kLoads + j) * 32);
      }
    }
  }
  uint2* scale_memory = reinterpret_cast<uint2*>(shared + Shape::kSums);
  NarrowScales<Shape> scales(args, tile, scale_memory + warp * 4 * Shape::kGroups * 8, lane);
  if (Weights::kScaled && count > 0) {
    scales.clear();
    scales.fetch(begin, 0);
  }

  // Tokens beyond n stay zero.
  const auto* input = static_cast<const typename Weights::Element*>(args.input);
  const uint4* tokens[kTokenTiles];
  uint4 x[kTokenDepth][kTokenTiles][kBlocksPerUnit] = {};
#pragma unroll
  for (int j = 0; j < kTokenTiles; ++j) {
    tokens[j] = reinterpret_cast<const uint4*>(
        input + static_cast<int64_t>(8 * j + g) * args.width + begin * kUnitColumns + 8 * t);
  }
  // `ahead` units from where `tokens` points.
  const auto load_tokens = [&](int ahead, uint4(&to)[kTokenTiles][kBlocksPerUnit]) {
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) {
      if (8 * j + g >= args.n) continue;
#pragma unroll
      for (int b = 0; b < kBlocksPerUnit; ++b) to[j][b] = __ldg(tokens[j] + ahead * 8 + b * 4);
    }
  };
#pragma unroll
  for (int i = 0; i < kTokenDepth; ++i) {
    if (i < count) load_tokens(i, x[i]);
  }

  float sums[kTokenTiles][4] = {};
  for (int first = 0, buffer = 0; first < count; first += kDepth, buffer ^= 1) {
    if (Weights::kScaled) {
      cp_async_wait<0>();
      __syncwarp();
      scales.select(begin + first, buffer, g);
      if (first + kDepth < count) scales.fetch(begin + first + kDepth, buffer ^ 1);
    }
#pragma unroll
    for (int i = 0; i < kDepth; ++i) {
      const int unit = first + i;
      if (unit >= count) break;
      uint32_t a[kBlocksPerUnit][2][4];
#pragma unroll
      for (int b = 0; b < kBlocksPerUnit; ++b) {
        GroupScales group{};
        if (Weights::kScaled) group = scales.get(i * kBlocksPerUnit + b);
        Weights::decode(units[i], b, group, a[b]);
      }
      uint4(&token_unit)[kTokenTiles][kBlocksPerUnit] = x[i % kTokenDepth];
#pragma unroll
      for (int b = 0; b < kBlocksPerUnit; ++b) {
#pragma unroll
        for (int step = 0; step < 2; ++step) {
#pragma unroll
          for (int j = 0; j < kTokenTiles; ++j) {
            multiply_step<Weights>(token_unit[j][b], step, a[b][step], sums[j]);
          }
        }
      }
      if (unit + kDepth < count) {
#pragma unroll
        for (int j = 0; j < Weights::kLoads; ++j) {
          units[i][j] = load_stream_16(weights + ((i + kDepth) * Weights::kLoads + j) * 32);
        }
      }
      if (unit + kTokenDepth < count) load_tokens(i + kTokenDepth, token_unit);
    }
    weights += kDepth * Weights::kLoads * 32;
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) tokens[j] += kDepth * 8;
  }

  // [warp][token][row]
  float* own = shared + warp * Shape::kTokens * kTileRows;
#pragma unroll
  for (int j = 0; j < kTokenTiles; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      own[(8 * j + 2 * t + i % 2) * kTileRows + g + 8 * (i / 2)] = sums[j][i];
    }
  }
  __syncthreads();
  const int tokens_now = args.n < Shape::kTokens ? args.n : Shape::kTokens;
#pragma unroll 1
  for (int i = threadIdx.x; i < block_tiles * tokens_now * 8; i += kNarrowWarps * 32) {
    const int row = i % 8, block_tile = i / 8 % block_tiles, token = i / 8 / block_tiles;
    const int out_tile = blockIdx.x * block_tiles + block_tile;
    if (out_tile >= args.tiles) continue;
    const float* from =
        shared + (block_tile * args.slices * Shape::kTokens + token) * kTileRows + row;
    float total[2] = {};
#pragma unroll 1
    for (int s = 0; s < args.slices; ++s) {
      total[0] += from[s * Shape::kTokens * kTileRows];
      total[1] += from[s * Shape::kTokens * kTileRows + 8];
    }
    store_products(args, token, out_tile, row, total[0], total[1]);
  }
}

}  // namespace slicellm::cuda
