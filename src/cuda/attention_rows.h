#pragma once

#include "cuda/attention_tile.h"

// What a warp does with 16 rows and a unit of tokens. Rows are the 16-row operand of the matrix
// products, tokens of K and dimensions of V the columns: scores stay in registers and become the
// rows' operand of the second product (Dao, "FlashAttention-2", 2023).
namespace slicellm::cuda {

struct AttentionParams {
  const TokenPlace* places;
  const AttentionItem* items;
  const int32_t* tables;
  const __half* queries;  // [n, heads, head_dim]
  const std::byte* kv;    // the layer's part of block 0
  size_t block_bytes, matrix_bytes;
  float* out;  // [n, heads, head_dim]
  // Of cut tiles; [kv_heads, partial_rows]. Values are [kDim].
  float* partial_values;
  float2* partial_stats;  // largest score, sum of weights
  int64_t partial_rows;
  int32_t* counters;  // [kv_heads, cut_tiles]
  int32_t cut_tiles;
  int32_t heads, group, head_dim;
  float scale;  // of scores, times log2(e)
};

// The two rows of a tile of 16 that a lane has a part of: lane / 4 and that plus 8.
struct RowPair {
  int32_t index[2];           // in the item
  int32_t first[2], last[2];  // positions seen
  int32_t at[2];              // row (token, head) of queries and output
  bool valid[2];
};

__device__ inline RowPair row_pair(const AttentionParams& p, const AttentionItem& item, int kv_head,
                                   int tile_row) {
  RowPair rows;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    rows.index[i] = tile_row + threadIdx.x % 32 / 4 + 8 * i;
    rows.valid[i] = rows.index[i] < item.rows;
    rows.first[i] = rows.last[i] = 0;
    rows.at[i] = 0;
    if (!rows.valid[i]) continue;
    const int32_t row = item.first_row + rows.index[i];
    const int32_t token = item.first_token + row / p.group;
    rows.at[i] = token * p.heads + kv_head * p.group + row % p.group;
    rows.first[i] = p.places[token].first;
    rows.last[i] = p.places[token].last;
  }
  return rows;
}

__device__ inline uint32_t load_pair(const __half* row, int dim, bool there) {
  return there ? *reinterpret_cast<const uint32_t*>(row + dim) : 0;
}

// The rows' operand. int8 has dimensions 0, 2, 1, 3 of each four where float16 has 0, 1, 8, 9 of
// sixteen: the order in which decode_codes gives K.
template <int kDim, bool kInt8>
__device__ inline void load_queries(const AttentionParams& p, const RowPair& rows,
                                    uint32_t (&q)[kDim / 16][4]) {
  const int quarter = threadIdx.x % 4;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const __half* row = p.queries + int64_t{rows.at[i]} * p.head_dim;
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      const int a = 16 * step + (kInt8 ? 4 : 2) * quarter, b = a + (kInt8 ? 2 : 8);
      const uint32_t x = load_pair(row, a, rows.valid[i] && a < p.head_dim);
      const uint32_t y = load_pair(row, b, rows.valid[i] && b < p.head_dim);
      q[step][i] = kInt8 ? __byte_perm(x, y, 0x5410) : x;
      q[step][i + 2] = kInt8 ? __byte_perm(x, y, 0x7632) : y;
    }
  }
}

// A softmax-weighted sum over some tokens: `max` is the largest score (base 2), `sum` that of
// 2^(score - max). To fold another one in: value = value * keep + other * add.
struct Stats {
  float max = -INFINITY;
  float sum = 0;
};
struct Factors {
  float keep, add;
};
__device__ inline Factors fold(Stats& into, float max, float sum) {
  const float top = fmaxf(into.max, max);
  const float reference = top == -INFINITY ? 0.0f : top;
  const Factors f = {exp2_approx(into.max - reference), exp2_approx(max - reference)};
  into.max = top;
  into.sum = fmaf(sum, f.add, into.sum * f.keep);
  return f;
}
__device__ inline float fold(const Factors& f, float into, float value) {
  return fmaf(value, f.add, into * f.keep);
}

// Scores of a tile of K: tokens 0..7 and 8..15.
template <int kDim, bool kInt8>
__device__ inline void score_tile(const uint32_t (&q)[kDim / 16][4], const std::byte* tile,
                                  float (&low)[4], float (&high)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) low[i] = high[i] = 0;
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
    uint32_t low_keys[2], high_keys[2];
    load_keys<kDim, kInt8>(tile, step, low_keys, high_keys);
    mma_m16n8k16<__half>(low, q[step], low_keys);
    mma_m16n8k16<__half>(high, q[step], high_keys);
  }
  if constexpr (kInt8) {
    const auto* scales = reinterpret_cast<const __half2*>(tile + KvTile<kDim, kInt8>::kScales);
    const float2 a = __half22float2(scales[threadIdx.x % 4]);
    const float2 b = __half22float2(scales[threadIdx.x % 4 + 4]);
    low[0] *= a.x, low[1] *= a.y, low[2] *= a.x, low[3] *= a.y;
    high[0] *= b.x, high[1] *= b.y, high[2] *= b.x, high[3] *= b.y;
  }
}

// Turns a unit's scores into weights, as the rows' operand of the product with V.
__device__ inline void softmax_unit(const RowPair& rows, int begin, float scale,
                                    float (&scores)[2 * kUnitBlocks][4],
                                    uint32_t (&weights)[kUnitBlocks][4], Stats (&stats)[2]) {
  constexpr uint32_t kOnes[2] = {0x3c003c00, 0x3c003c00};
  const int token = begin + threadIdx.x % 4 * 2;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (begin < rows.first[i] || begin + kUnitTokens > rows.last[i]) {
#pragma unroll
      for (int n = 0; n < 2 * kUnitBlocks; ++n) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int position = token + 8 * n + j;
          if (position < rows.first[i] || position >= rows.last[i]) {
            scores[n][2 * i + j] = -INFINITY;
          }
        }
      }
    }
    float top = -INFINITY;
#pragma unroll
    for (int n = 0; n < 2 * kUnitBlocks; ++n) {
      top = fmaxf(top, fmaxf(scores[n][2 * i], scores[n][2 * i + 1]));
    }
    top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 1));
    top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 2));
    // Rounded by itself, whatever it is used in: never one half of a fused operation.
    const float max = __fmul_rn(top, scale);
    const float reference = max == -INFINITY ? 0.0f : max;
#pragma unroll
    for (int n = 0; n < 2 * kUnitBlocks; ++n) {
      const float a = exp2_approx(fmaf(scores[n][2 * i], scale, -reference));
      const float b = exp2_approx(fmaf(scores[n][2 * i + 1], scale, -reference));
      weights[n / 2][n % 2 * 2 + i] = as_bits(__floats2half2_rn(a, b));
    }
    stats[i].max = max;
  }
  // The sums of the rounded weights: a product with ones.
  float sums[4] = {};
#pragma unroll
  for (int block = 0; block < kUnitBlocks; ++block)
    mma_m16n8k16<__half>(sums, weights[block], kOnes);
  stats[0].sum = sums[0];
  stats[1].sum = sums[2];
}

// Calls write(i, dimension, pair of values) for what a lane has of row i of `values`, where
// values[2 * step] and [2 * step + 1] are the columns of load_values.
template <int kDim, bool kInt8, class Write>
__device__ inline void each_pair(const float (&values)[kDim / 8][4], Write write) {
  const int quarter = threadIdx.x % 4;
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
    const auto& a = values[2 * step];
    const auto& b = values[2 * step + 1];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if constexpr (kInt8) {
        const int dim = 16 * step + 4 * quarter;
        write(i, dim, make_float2(a[2 * i], b[2 * i]));
        write(i, dim + 2, make_float2(a[2 * i + 1], b[2 * i + 1]));
      } else {
        const int dim = 16 * step + 2 * quarter;
        write(i, dim, make_float2(a[2 * i], a[2 * i + 1]));
        write(i, dim + 8, make_float2(b[2 * i], b[2 * i + 1]));
      }
    }
  }
}

}  // namespace slicellm::cuda
