#pragma once

#include "cuda/attention_results.h"

// Decode: up to 16 rows, whose tokens the warps of a block divide among themselves.
namespace slicellm::cuda {

// One unit by one warp, through the `kTilesPerWarp` tiles at `ring`: values and stats of its rows.
template <int kDim, bool kInt8>
__device__ inline void narrow_unit(const AttentionParams& p, const AttentionItem& item, int kv_head,
                                   const RowPair& rows, int unit, std::byte* ring,
                                   float (&values)[kDim / 8][4], Stats (&stats)[2]) {
  using Tile = KvTile<kDim, kInt8>;
  const int lane = threadIdx.x % 32;
  const int begin = unit * kUnitTokens;
  int32_t entry = 0;
  if (lane < kUnitBlocks && begin + lane * kKvBlockTokens < item.end) {
    entry = p.tables[item.table + unit * kUnitBlocks + lane];
  }
  const auto start = [&](int block, int is_value) {
    const int tokens = min(max(item.end - begin - block * kKvBlockTokens, 0), kKvBlockTokens);
    const std::byte* matrix = p.kv + __shfl_sync(0xffffffff, entry, block) * p.block_bytes +
                              (2 * kv_head + is_value) * p.matrix_bytes;
    start_load<kDim, kInt8>(matrix, tokens, p.head_dim, ring + block * Tile::kBytes);
    cp_async_commit();
  };
#pragma unroll
  for (int block = 0; block < kUnitBlocks; ++block) start(block, 0);
  uint32_t q[kDim / 16][4];
  load_queries<kDim, kInt8>(p, rows, q);

  float scores[2 * kUnitBlocks][4];
#pragma unroll
  for (int block = 0; block < kUnitBlocks; ++block) {
    cp_async_wait<kTilesPerWarp - 1>();
    __syncwarp();
    score_tile<kDim, kInt8>(q, ring + block * Tile::kBytes, scores[2 * block],
                            scores[2 * block + 1]);
    __syncwarp();
    start(block, 1);
  }
  uint32_t weights[kUnitBlocks][4];
  softmax_unit(rows, begin, p.scale, scores, weights, stats);
#pragma unroll
  for (int block = 0; block < kUnitBlocks; ++block) {
    cp_async_wait<kTilesPerWarp - 1>();
    cp_async_commit();  // an empty group, so that the same number stays pending
    __syncwarp();
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      uint32_t first[2], second[2];
      load_values<kDim, kInt8>(ring + block * Tile::kBytes, step, first, second);
      mma_m16n8k16<__half>(values[2 * step], weights[block], first);
      mma_m16n8k16<__half>(values[2 * step + 1], weights[block], second);
    }
  }
}

// Each warp works on one unit of a split; then all fold the four.
template <int kDim, bool kInt8>
__device__ inline void narrow_item(const AttentionParams& p, const AttentionItem& item, int kv_head,
                                   std::byte* shared) {
  constexpr int kShare = kNarrowRows * kDim / 4 / kAttentionThreads;  // quads of a thread
  constexpr int kRow = kDim + 8;  // floats of an exchanged row: 8 more spread rows over the banks
  constexpr int kWarpBytes = kTilesPerWarp * KvTile<kDim, kInt8>::kBytes;
  static_assert(kNarrowRows * (kRow * sizeof(float) + sizeof(float2)) <= kWarpBytes);
  const int warp = threadIdx.x / 32;
  const RowPair rows = row_pair(p, item, kv_head, 0);
  // What a warp found out about its unit lies where its K and V were.
  std::byte* ring = shared + warp * kWarpBytes;
  const auto exchanged = [](std::byte* of_warp, int row) {
    return reinterpret_cast<float*>(of_warp) + row * kRow;
  };
  const auto exchanged_stats = [](std::byte* of_warp, int row) {
    return reinterpret_cast<float2*>(of_warp + kNarrowRows * kRow * sizeof(float)) + row;
  };

  Quad total[kShare];
  for (int split = item.first_split; split < item.last_split; ++split) {
    const int unit = split * kSplitUnits + warp;
    float values[kDim / 8][4] = {};
    Stats stats[2];
    if (unit * kUnitTokens < item.last_seen && (unit + 1) * kUnitTokens > item.first_seen) {
      narrow_unit<kDim, kInt8>(p, item, kv_head, rows, unit, ring, values, stats);
      __syncwarp();
    }
    each_pair<kDim, kInt8>(values, [&](int i, int dim, float2 pair) {
      const int row = threadIdx.x % 32 / 4 + 8 * i;
      *reinterpret_cast<float2*>(exchanged(ring, row) + dim) = pair;
    });
    if (threadIdx.x % 4 < 2) {
      const int i = threadIdx.x % 4;
      *exchanged_stats(ring, threadIdx.x % 32 / 4 + 8 * i) =
          i == 0 ? make_float2(stats[0].max, stats[0].sum)
                 : make_float2(stats[1].max, stats[1].sum);
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kShare; ++i) {
      const int index = (threadIdx.x + i * kAttentionThreads) / (kDim / 4);
      const int dim = (threadIdx.x + i * kAttentionThreads) % (kDim / 4) * 4;
      Quad quad;
#pragma unroll
      for (int w = 0; w < kAttentionWarps; ++w) {
        quad.fold_in(*reinterpret_cast<float4*>(exchanged(shared + w * kWarpBytes, index) + dim),
                     *exchanged_stats(shared + w * kWarpBytes, index));
      }
      if (item.partial < 0) {
        total[i].fold_in(quad.value, make_float2(quad.stats.max, quad.stats.sum));
      } else if (index < item.rows) {
        const int64_t row = partial_row(p, item, kv_head, split, index);
        *reinterpret_cast<float4*>(p.partial_values + row * kDim + dim) = quad.value;
        if (dim == 0) p.partial_stats[row] = make_float2(quad.stats.max, quad.stats.sum);
      }
    }
    __syncthreads();
  }
  if (item.partial >= 0) return finish_cut_tile<kDim>(p, item, kv_head);
#pragma unroll
  for (int i = 0; i < kShare; ++i) {
    const int index = (threadIdx.x + i * kAttentionThreads) / (kDim / 4);
    const int dim = (threadIdx.x + i * kAttentionThreads) % (kDim / 4) * 4;
    if (index < item.rows) write_quad(p, item, kv_head, index, dim, total[i]);
  }
}

}  // namespace slicellm::cuda
