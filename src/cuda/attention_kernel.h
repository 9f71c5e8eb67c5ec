#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cuda/attention_work.h"
#include "cuda/ptx.h"

// The attention kernel, for a padded head dimension and a type of K and V.
//
// Rows are the 16-row operand of the matrix products, tokens of K and dimensions of V the columns:
// scores stay in registers and become the rows' operand of the second product (Dao, "FlashAttention
// -2", 2023). K and V come through shared memory by asynchronous copies, in the tiles in which they
// lie in the cache: 16 tokens.
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

constexpr int kAttentionWarps = 4;
constexpr int kAttentionThreads = 32 * kAttentionWarps;
static_assert(kAttentionWarps == kSplitUnits && kAttentionWarps == kUnitBlocks);

// 16 tokens of K or V in shared memory. The rows' odd number of 16-byte pieces spreads any 8 rows
// over all banks.
template <int kDim, bool kInt8>
struct KvTile {
  static constexpr int kRowBytes = kInt8 ? kDim : 2 * kDim;
  static constexpr int kPieces = kRowBytes / 16;
  static constexpr int kStride = kRowBytes + 16;
  static constexpr int kScales = kKvBlockTokens * kStride;  // int8: [16] half
  static constexpr int kBytes = kScales + (kInt8 ? 2 * kKvBlockTokens : 0);
};

constexpr int kTilesPerWarp = 4;  // in shared memory at a time

template <int kDim, bool kInt8>
constexpr int kAttentionSharedBytes = kAttentionWarps* kTilesPerWarp* KvTile<kDim, kInt8>::kBytes;

__device__ inline __half2 as_half2(uint32_t bits) {
  __half2 halves;
  memcpy(&halves, &bits, sizeof(halves));
  return halves;
}
__device__ inline uint32_t as_bits(__half2 halves) {
  uint32_t bits;
  memcpy(&bits, &halves, sizeof(bits));
  return bits;
}

// ---- K and V
// -------------------------------------------------------------------------------------

// A warp starts to copy the first `tokens` rows of a matrix in the cache; the tile's other rows and
// its dimensions beyond head_dim become zero.
template <int kDim, bool kInt8>
__device__ inline void start_load(const std::byte* matrix, int tokens, int head_dim,
                                  std::byte* tile) {
  using Tile = KvTile<kDim, kInt8>;
  const int lane = threadIdx.x % 32;
  const int row_bytes = kInt8 ? head_dim : 2 * head_dim;
  if (row_bytes % 16 == 0) {
    constexpr int kLanes = Tile::kPieces & -Tile::kPieces;  // side by side in a row; a power of two
    const int first_row = lane / kLanes, first_column = lane % kLanes * 16;
#pragma unroll
    for (int row_step = 0; row_step < kKvBlockTokens; row_step += 32 / kLanes) {
      const int row = first_row + row_step;
#pragma unroll
      for (int step = 0; step < Tile::kRowBytes; step += 16 * kLanes) {
        const int column = first_column + step;
        const bool there = row < tokens && column < row_bytes;
        const std::byte* from = there ? matrix + row * row_bytes + column : matrix;
        cp_async_16(tile + row * Tile::kStride + column, from, there ? 16 : 0);
      }
    }
  } else {  // rows that are not aligned: head dimensions of tiny models
    for (int i = lane; i < kKvBlockTokens * Tile::kRowBytes / 2; i += 32) {
      const int row = i / (Tile::kRowBytes / 2), column = i % (Tile::kRowBytes / 2) * 2;
      uint16_t value = 0;
      if (row < tokens && column < row_bytes) {
        value = *reinterpret_cast<const uint16_t*>(matrix + row * row_bytes + column);
      }
      *reinterpret_cast<uint16_t*>(tile + row * Tile::kStride + column) = value;
    }
  }
  if (kInt8 && lane < 2) {
    const int bytes = min(max(2 * tokens - 16 * lane, 0), 16);
    const std::byte* scales = matrix + kKvBlockTokens * row_bytes;
    cp_async_16(tile + Tile::kScales + 16 * lane, scales + 16 * lane, bytes);
  }
}

// Codes 0, 2 and codes 1, 3 of four: 1024 + code as a half is the code in the low bits.
__device__ inline void decode_codes(uint32_t codes, __half2& even, __half2& odd) {
  const __half2 offset = as_half2(0x64806480);  // 1024 + 128
  even = __hsub2(as_half2((codes & 0x00ff00ff) | 0x64006400), offset);
  odd = __hsub2(as_half2((codes >> 8 & 0x00ff00ff) | 0x64006400), offset);
}

// Dimensions [16 * step, 16 * step + 16) of a tile of K as columns: tokens 0..7 and 8..15. Within
// the 16, int8 has them in the order of load_queries.
template <int kDim, bool kInt8>
__device__ inline void load_keys(const std::byte* tile, int step, uint32_t (&low)[2],
                                 uint32_t (&high)[2]) {
  using Tile = KvTile<kDim, kInt8>;
  const int lane = threadIdx.x % 32;
  if constexpr (kInt8) {
    uint32_t codes[2];
    ldmatrix_x2(codes, tile + lane % 16 * Tile::kStride + step * 16);
    __half2 even, odd;
    decode_codes(codes[0], even, odd);
    low[0] = as_bits(even), low[1] = as_bits(odd);
    decode_codes(codes[1], even, odd);
    high[0] = as_bits(even), high[1] = as_bits(odd);
  } else {
    uint32_t r[4];
    const int token = lane % 8 + lane / 16 * 8;
    ldmatrix_x4(r, tile + token * Tile::kStride + (2 * step + lane / 8 % 2) * 16);
    low[0] = r[0], low[1] = r[1];
    high[0] = r[2], high[1] = r[3];
  }
}

// Dimensions [16 * step, 16 * step + 16) of a tile of V as two times 8 columns: the lower and the
// upper ones, or, of int8, the even and the odd ones.
template <int kDim, bool kInt8>
__device__ inline void load_values(const std::byte* tile, int step, uint32_t (&first)[2],
                                   uint32_t (&second)[2]) {
  using Tile = KvTile<kDim, kInt8>;
  const int lane = threadIdx.x % 32;
  if constexpr (kInt8) {
    uint32_t codes[2];
    ldmatrix_x2_trans(codes, tile + lane % 16 * Tile::kStride + step * 16);
    const auto* scales = reinterpret_cast<const __half2*>(tile + Tile::kScales);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const __half2 scale = scales[lane % 4 + 4 * i];
      __half2 even, odd;
      decode_codes(codes[i], even, odd);
      first[i] = as_bits(__hmul2(even, scale));
      second[i] = as_bits(__hmul2(odd, scale));
    }
  } else {
    uint32_t r[4];
    ldmatrix_x4_trans(r, tile + lane % 16 * Tile::kStride + (2 * step + lane / 16) * 16);
    first[0] = r[0], first[1] = r[1];
    second[0] = r[2], second[1] = r[3];
  }
}

// ---- rows
// ----------------------------------------------------------------------------------------

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

// ---- a unit
// --------------------------------------------------------------------------------------

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

// ---- results
// -------------------------------------------------------------------------------------

// A thread's share of 16 rows of results: four dimensions.
struct Quad {
  Stats stats;
  float4 value = {0, 0, 0, 0};

  __device__ void fold_in(float4 other, float2 other_stats) {
    const Factors f = fold(stats, other_stats.x, other_stats.y);
    value.x = fold(f, value.x, other.x);
    value.y = fold(f, value.y, other.y);
    value.z = fold(f, value.z, other.z);
    value.w = fold(f, value.w, other.w);
  }
};

__device__ inline void write_quad(const AttentionParams& p, const AttentionItem& item, int kv_head,
                                  int index, int dim, const Quad& quad) {
  const int32_t row = item.first_row + index;
  const int64_t token = item.first_token + row / p.group;
  const int64_t at = token * p.heads + kv_head * p.group + row % p.group;
  float* to = p.out + at * p.head_dim + dim;
  const float inverse = 1.0f / quad.stats.sum;
  // head_dim is even.
  if (dim < p.head_dim) {
    *reinterpret_cast<float2*>(to) = make_float2(quad.value.x * inverse, quad.value.y * inverse);
  }
  if (dim + 2 < p.head_dim) {
    *reinterpret_cast<float2*>(to + 2) =
        make_float2(quad.value.z * inverse, quad.value.w * inverse);
  }
}

__device__ inline int64_t partial_row(const AttentionParams& p, const AttentionItem& item,
                                      int kv_head, int split, int index) {
  return kv_head * p.partial_rows + item.partial + int64_t{split - item.tile_first} * item.rows +
         index;
}

// All of the block have written their splits' results; the last block of the tile folds them.
template <int kDim>
__device__ inline void finish_cut_tile(const AttentionParams& p, const AttentionItem& item,
                                       int kv_head) {
  SLICELLM_SHARED(int, last, 1);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    int32_t* counter = p.counters + kv_head * p.cut_tiles + item.counter;
    last[0] = atomicAdd(counter, 1) == item.tile_items - 1;
    if (last[0]) *counter = 0;
  }
  __syncthreads();
  if (!last[0]) return;
  __threadfence();
  for (int i = threadIdx.x; i < item.rows * (kDim / 4); i += kAttentionThreads) {
    const int index = i / (kDim / 4), dim = i % (kDim / 4) * 4;
    Quad quad;
#pragma unroll 4
    for (int split = item.tile_first; split < item.tile_last; ++split) {
      const int64_t row = partial_row(p, item, kv_head, split, index);
      quad.fold_in(__ldcg(reinterpret_cast<const float4*>(p.partial_values + row * kDim + dim)),
                   __ldcg(p.partial_stats + row));
    }
    write_quad(p, item, kv_head, index, dim, quad);
  }
}

// ---- narrow tiles
// --------------------------------------------------------------------------------

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

// ---- wide tiles
// ----------------------------------------------------------------------------------

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

  RowState<kDim> total, state;
  total.clear();
  state.clear();
  for (int unit = begin; unit < end; ++unit) {
    cp_async_wait<0>();
    __syncthreads();
    if (unit + 1 < end) start(unit + 1);
    if (busy) {
      wide_unit<kDim, kInt8>(p, rows, q, unit, shared + unit % 2 * kStageBytes, state);
    }
    if ((unit + 1) % kSplitUnits != 0 && unit + 1 != end) continue;
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
      const int split = unit / kSplitUnits;
      each_pair<kDim, kInt8>(state.values, [&](int i, int dim, float2 pair) {
        if (!rows.valid[i]) return;
        const int64_t row = partial_row(p, item, kv_head, split, rows.index[i]);
        *reinterpret_cast<float2*>(p.partial_values + row * kDim + dim) = pair;
        if (dim == 0) {
          p.partial_stats[row] = make_float2(state.stats[i].max, state.stats[i].sum);
        }
      });
    }
    state.clear();
  }
  if (item.partial >= 0) return finish_cut_tile<kDim>(p, item, kv_head);
  const float inverse[2] = {1.0f / total.stats[0].sum, 1.0f / total.stats[1].sum};
  each_pair<kDim, kInt8>(total.values, [&](int i, int dim, float2 pair) {
    if (!rows.valid[i] || dim >= p.head_dim) return;
    *reinterpret_cast<float2*>(p.out + int64_t{rows.at[i]} * p.head_dim + dim) =
        make_float2(pair.x * inverse[i], pair.y * inverse[i]);
  });
}

// Blocks of kAttentionThreads, a grid of (items, kv heads). A step without prefill takes the kernel
// without wide tiles, which needs fewer registers.
template <int kDim, bool kInt8, bool kWide>
__global__ void __launch_bounds__(kAttentionThreads, kWide ? 2 : 3)
    attend(const AttentionParams p) {
  SLICELLM_DYNAMIC_SHARED(std::byte, shared);
  const AttentionItem& item = p.items[blockIdx.x];
  if (kWide && item.rows > kNarrowRows) {
    wide_item<kDim, kInt8>(p, item, blockIdx.y, shared);
  } else {
    narrow_item<kDim, kInt8>(p, item, blockIdx.y, shared);
  }
}

}  // namespace slicellm::cuda
