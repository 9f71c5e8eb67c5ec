#include "cuda/attention.h"

#include <numbers>

#include "cuda/attention_launch.h"

namespace slicellm::cuda {
namespace {

constexpr int kAppendWarps = 4;  // of a block; each does one head of one token
constexpr int kMostPairs = 2;    // of a lane: heads of up to 128 dimensions

struct AppendParams {
  const TokenPlace* places;
  const float* qkv;  // [n, heads + 2 * kv_heads, head_dim]
  const float* cos;
  const float* sin;
  __half* queries;  // [n, heads, head_dim]
  std::byte* kv;    // the layer's part of block 0
  size_t block_bytes, matrix_bytes;
  RopeStyle style;
  int32_t rotary_dim;
  int32_t heads, kv_heads, head_dim;
};

// A pair of dimensions that turn together, and the row of the table that says how far.
struct Pair {
  int32_t a, b;
  int32_t table_row;  // -1: they do not turn
  int32_t angle;      // column of the table
};

__device__ inline Pair pair_of(const AppendParams& p, const TokenPlace& place, int i) {
  const int turns = p.rotary_dim / 2;
  if (p.style == RopeStyle::glm_2d) {
    if (i >= 2 * turns) return {2 * i, 2 * i + 1, -1, 0};
    const int half = i / turns, angle = i % turns;
    const int a = half * p.rotary_dim + angle;
    return {a, a + turns, half == 0 ? place.position : place.block_position, angle};
  }
  const int32_t row = i < turns ? place.position : -1;
  if (p.style == RopeStyle::half && i < turns) return {i, i + turns, row, i};
  return {2 * i, 2 * i + 1, row, i};
}

// An outlier becomes float16's largest number, so that it cannot turn a row into NaN.
__device__ inline float bounded(float x) {
  constexpr float kLargest = 65504.0f;
  return x > kLargest ? kLargest : x < -kLargest ? -kLargest : x;
}

__device__ inline uint8_t code_of(float x, float scale) {
  const float code = scale > 0 ? rintf(x / scale) : 0.0f;
  return static_cast<uint8_t>(fminf(fmaxf(code, -127.0f), 127.0f) + 128.0f);
}

// Rotates q and k; q goes to `queries`, k and v to the cache.
template <bool kInt8>
__global__ void __launch_bounds__(32 * kAppendWarps) append_kernel(const AppendParams p) {
  const int lane = threadIdx.x % 32;
  const int head = blockIdx.y * kAppendWarps + threadIdx.x / 32;
  if (head >= p.heads + 2 * p.kv_heads) return;
  const int64_t token = blockIdx.x;
  const TokenPlace place = p.places[token];
  const float* from = p.qkv + (token * (p.heads + 2 * p.kv_heads) + head) * p.head_dim;
  const bool is_value = head >= p.heads + p.kv_heads;

  Pair pairs[kMostPairs];
  float2 values[kMostPairs];
  float largest = 0;
#pragma unroll
  for (int k = 0; k < kMostPairs; ++k) {
    const int i = lane + 32 * k;
    if (i >= p.head_dim / 2) break;
    Pair& pair = pairs[k];
    pair = is_value ? Pair{2 * i, 2 * i + 1, -1, 0} : pair_of(p, place, i);
    float2 x = make_float2(from[pair.a], from[pair.b]);
    if (pair.table_row >= 0) {
      const int64_t at = int64_t{pair.table_row} * (p.rotary_dim / 2) + pair.angle;
      const float cosine = p.cos[at], sine = p.sin[at];
      // Not fused, as on the CPU.
      x = make_float2(__fsub_rn(__fmul_rn(x.x, cosine), __fmul_rn(x.y, sine)),
                      __fadd_rn(__fmul_rn(x.y, cosine), __fmul_rn(x.x, sine)));
    }
    values[k] = make_float2(bounded(x.x), bounded(x.y));
    largest = fmaxf(largest, fmaxf(fabsf(values[k].x), fabsf(values[k].y)));
  }

  __half* halves = p.queries + (token * p.heads + head) * p.head_dim;
  if (head >= p.heads) {
    const int matrix = is_value ? 2 * (head - p.heads - p.kv_heads) + 1 : 2 * (head - p.heads);
    const int row = place.slot % kKvBlockTokens;
    std::byte* block = p.kv + place.slot / kKvBlockTokens * p.block_bytes + matrix * p.matrix_bytes;
    if constexpr (kInt8) {
      for (int other = 16; other > 0; other /= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, other));
      }
      constexpr float kMostScale = 515.5f;  // 127 times it is a half
      const __half scale = __float2half_rn(fminf(largest / 127.0f, kMostScale));
      auto* codes = reinterpret_cast<uint8_t*>(block) + row * p.head_dim;
#pragma unroll
      for (int k = 0; k < kMostPairs; ++k) {
        if (lane + 32 * k >= p.head_dim / 2) break;
        codes[pairs[k].a] = code_of(values[k].x, __half2float(scale));
        codes[pairs[k].b] = code_of(values[k].y, __half2float(scale));
      }
      if (lane == 0) {
        reinterpret_cast<__half*>(block + kKvBlockTokens * p.head_dim)[row] = scale;
      }
      return;
    }
    halves = reinterpret_cast<__half*>(block) + row * p.head_dim;
  }
#pragma unroll
  for (int k = 0; k < kMostPairs; ++k) {
    if (lane + 32 * k >= p.head_dim / 2) break;
    halves[pairs[k].a] = __float2half_rn(values[k].x);
    halves[pairs[k].b] = __float2half_rn(values[k].y);
  }
}

const AttentionKernels& kernels_for(DType kv_dtype, int32_t head_dim) {
  const int index = padded_head_dim(head_dim) / 32 - 1;
  return kv_dtype == DType::int8 ? kInt8Attention[index] : kHalfAttention[index];
}

// The layer's part of block 0.
std::byte* layer_data(const AttentionRun& run) {
  return run.kv->data() + run.layer * 2 * run.kv->matrix_bytes() * run.kv->layout().kv_heads;
}

}  // namespace

void prepare_attention(const KvLayout& layout) {
  kernels_for(layout.dtype, layout.head_dim).prepare();
}

void rope_append(cudaStream_t stream, const AttentionPlan& plan, const AttentionRun& run) {
  const AttentionShape& shape = plan.shape();
  const AppendParams params = {.places = reinterpret_cast<const TokenPlace*>(run.image),
                               .qkv = run.qkv,
                               .cos = run.rope->cos(),
                               .sin = run.rope->sin(),
                               .queries = run.queries,
                               .kv = layer_data(run),
                               .block_bytes = run.kv->block_bytes(),
                               .matrix_bytes = run.kv->matrix_bytes(),
                               .style = run.rope->style,
                               .rotary_dim = run.rope->rotary_dim,
                               .heads = shape.heads,
                               .kv_heads = shape.kv_heads,
                               .head_dim = shape.head_dim};
  const int heads = shape.heads + 2 * shape.kv_heads;
  const dim3 grid(static_cast<unsigned>(plan.tokens()),
                  static_cast<unsigned>((heads + kAppendWarps - 1) / kAppendWarps));
  if (run.kv->layout().dtype == DType::int8) {
    SLICELLM_LAUNCH((append_kernel<true>), grid, dim3(32 * kAppendWarps), 0, stream, params);
  } else {
    SLICELLM_LAUNCH((append_kernel<false>), grid, dim3(32 * kAppendWarps), 0, stream, params);
  }
  SLICELLM_CUDA_CHECK(cudaGetLastError());
}

void attend(cudaStream_t stream, const AttentionPlan& plan, const AttentionRun& run) {
  const AttentionShape& shape = plan.shape();
  auto* partials = reinterpret_cast<float*>(run.partials);
  const int64_t partial_floats =
      plan.partial_rows_ * shape.kv_heads * padded_head_dim(shape.head_dim);
  const AttentionParams params = {
      .places = reinterpret_cast<const TokenPlace*>(run.image),
      .items = reinterpret_cast<const AttentionItem*>(run.image + plan.first_item_),
      .tables = run.image + plan.first_table_,
      .queries = run.queries,
      .kv = layer_data(run),
      .block_bytes = run.kv->block_bytes(),
      .matrix_bytes = run.kv->matrix_bytes(),
      .out = run.out,
      .partial_values = partials,
      .partial_stats = reinterpret_cast<float2*>(partials + partial_floats),
      .partial_rows = plan.partial_rows_,
      .counters = run.counters,
      .cut_tiles = plan.cut_tiles_,
      .heads = shape.heads,
      .group = shape.heads / shape.kv_heads,
      .head_dim = shape.head_dim,
      .scale = run.scale * std::numbers::log2e_v<float>};
  const dim3 grid(static_cast<unsigned>(plan.items_), static_cast<unsigned>(shape.kv_heads));
  kernels_for(run.kv->layout().dtype, shape.head_dim).launch(stream, params, plan.wide_, grid);
  SLICELLM_CUDA_CHECK(cudaGetLastError());
}

}  // namespace slicellm::cuda
