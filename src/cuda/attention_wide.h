#pragma once

#include "cuda/attention_results.h"

// Prefill: up to 64 rows, 16 a warp, which share K and V in shared memory.
namespace slicellm::cuda {

// What a warp knows of its 16 rows: values[kDim / 8] as the matrix product leaves them.
template <int kDim>
struct RowState {
  float values[kDim / 8][4];
  Stats stats[2];

  __device__ void clear() {
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) values[n][i] = 0;
    }
    stats[0] = stats[1] = Stats{};
  }
};

// One unit, whose four tiles of K and four of V lie at `tiles`, folded into `state`.
template <int kDim, bool kInt8>
__device__ inline void wide_unit(const AttentionParams& p, const RowPair& rows,
                                 const uint32_t (&q)[kDim / 16][4], int unit,
                                 const std::byte* tiles, RowState<kDim>& state) {
  using Tile = KvTile<kDim, kInt8>;
  float scores[2 * kUnitBlocks][4];
#pragma unroll
  for (int block = 0; block < kUnitBlocks; ++block) {
    score_tile<kDim, kInt8>(q, tiles + block * Tile::kBytes, scores[2 * block],
                            scores[2 * block + 1]);
  }
  uint32_t weights[kUnitBlocks][4];
  Stats stats[2];
  softmax_unit(rows, unit * kUnitTokens, p.scale, scores, weights, stats);
  const Factors factors[2] = {fold(state.stats[0], stats[0].max, stats[0].sum),
                              fold(state.stats[1], stats[1].max, stats[1].sum)};
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
    float sums[2][4] = {};
#pragma unroll
    for (int block = 0; block < kUnitBlocks; ++block) {
      uint32_t first[2], second[2];
      load_values<kDim, kInt8>(tiles + (kUnitBlocks + block) * Tile::kBytes, step, first, second);
      mma_m16n8k16<__half>(sums[0], weights[block], first);
      mma_m16n8k16<__half>(sums[1], weights[block], second);
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& value = state.values[2 * step + n][i];
        value = fold(factors[i / 2], value, sums[n][i]);
      }
    }
  }
}

// Each warp works on 16 rows; units pass through shared memory, the next one on its way while one
// is worked on.
template <int kDim, bool kInt8>
__device__ inline void wide_item(const AttentionParams& p, const AttentionItem& item, int kv_head,
                                 std::byte* shared) {
  using Tile = KvTile<kDim, kInt8>;
  constexpr int kStageBytes = 2 * kUnitBlocks * Tile::kBytes;
  const int warp = threadIdx.x / 32;
  const int begin = max(item.first_split * kSplitUnits, item.first_seen / kUnitTokens);
  const int end =
      min(item.last_split * kSplitUnits, (item.last_seen + kUnitTokens - 1) / kUnitTokens);
  // Each warp copies one KV block of a unit.
  const auto start = [&](int unit) {
    const int block = unit * kUnitBlocks + warp;
    const int tokens = min(max(item.end - block * kKvBlockTokens, 0), kKvBlockTokens);
    const int32_t entry = tokens > 0 ? p.tables[item.table + block] : 0;
    const std::byte* matrix = p.kv + entry * p.block_bytes + 2 * kv_head * p.matrix_bytes;
    std::byte* to = shared + unit % 2 * kStageBytes + warp * Tile::kBytes;
    start_load<kDim, kInt8>(matrix, tokens, p.head_dim, to);
    start_load<kDim, kInt8>(matrix + p.matrix_bytes, tokens, p.head_dim,
                            to + kUnitBlocks * Tile::kBytes);
    cp_async_commit();
  };
  start(begin);
  const RowPair rows = row_pair(p, item, kv_head, warp * kNarrowRows);
  const bool busy = warp * kNarrowRows < item.rows;
  uint32_t q[kDim / 16][4];
  load_queries<kDim, kInt8>(p, rows, q);

  RowState<kDim> total;
  total.clear();
  for (int split = item.first_split; split < item.last_split; ++split) {
    RowState<kDim> state;
    state.clear();
    const int split_end = min((split + 1) * kSplitUnits, end);
#pragma unroll 1
    for (int unit = max(split * kSplitUnits, begin); unit < split_end; ++unit) {
      cp_async_wait<0>();
      __syncthreads();
      if (unit + 1 < end) start(unit + 1);
      if (busy) {
        wide_unit<kDim, kInt8>(p, rows, q, unit, shared + unit % 2 * kStageBytes, state);
      }
    }
    if (item.partial < 0) {
      const Factors factors[2] = {fold(total.stats[0], state.stats[0].max, state.stats[0].sum),
                                  fold(total.stats[1], state.stats[1].max, state.stats[1].sum)};
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          total.values[n][i] = fold(factors[i / 2], total.values[n][i], state.values[n][i]);
        }
      }
    } else {
      each_pair<kDim, kInt8>(state.values, [&](int i, int dim, float2 pair) {
        if (!rows.valid[i]) return;
        const int64_t row = partial_row(p, item, kv_head, split, rows.index[i]);
        *reinterpret_cast<float2*>(p.partial_values + row * kDim + dim) = pair;
        if (dim == 0) {
          p.partial_stats[row] = make_float2(state.stats[i].max, state.stats[i].sum);
        }
      });
    }
  }
  if (item.partial >= 0) return finish_cut_tile<kDim>(p, item, kv_head);
  const float inverse[2] = {1.0f / total.stats[0].sum, 1.0f / total.stats[1].sum};
  each_pair<kDim, kInt8>(total.values, [&](int i, int dim, float2 pair) {
    if (!rows.valid[i] || dim >= p.head_dim) return;
    *reinterpret_cast<float2*>(p.out + int64_t{rows.at[i]} * p.head_dim + dim) =
        make_float2(pair.x * inverse[i], pair.y * inverse[i]);
  });
}

}  // namespace slicellm::cuda
