#pragma once

#include "cuda/attention_rows.h"

// Results of 16 rows shared out among the threads of a block, and tiles of rows that were cut.
namespace slicellm::cuda {

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
  constexpr int kBatch = 16;  // loads on their way at a time
  for (int i = threadIdx.x; i < item.rows * (kDim / 4); i += kAttentionThreads) {
    const int index = i / (kDim / 4), dim = i % (kDim / 4) * 4;
    Quad quad;
    for (int first = item.tile_first; first < item.tile_last; first += kBatch) {
      float4 values[kBatch];
      float2 stats[kBatch];
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        if (first + k >= item.tile_last) continue;
        const int64_t row = partial_row(p, item, kv_head, first + k, index);
        values[k] = __ldcg(reinterpret_cast<const float4*>(p.partial_values + row * kDim + dim));
        stats[k] = __ldcg(p.partial_stats + row);
      }
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        if (first + k < item.tile_last) quad.fold_in(values[k], stats[k]);
      }
    }
    write_quad(p, item, kv_head, index, dim, quad);
  }
}

}  // namespace slicellm::cuda
