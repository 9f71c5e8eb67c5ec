#include "cuda/sampling.h"

#include <cfloat>
#include <climits>
#include <cmath>

#include "cuda/kernel.h"
#include "cuda/runtime.h"
#include "cuda/sampling_search.h"

namespace slicellm::cuda {
namespace {

constexpr int kSegment = 4096;  // logits that one block looks at
constexpr int kThreads = 256;
constexpr int kDrawThreads = 1024;
static_assert(kMaxVocabulary / kSegment <= kDrawThreads && kBins % kDrawThreads == 0);

struct Best {
  float value;
  int32_t id;
  int32_t valid;  // no NaN and no +infinity so far
};

__device__ inline Best better(const Best& a, const Best& b) {
  const bool second = b.value > a.value || (b.value == a.value && b.id < a.id);
  return Best{second ? b.value : a.value, second ? b.id : a.id, a.valid & b.valid};
}

// What is kept of each row between the kernels.
struct Scratch {
  Mass* segment_mass;   // [n, segments], for draws from all tokens
  Mass* bin_mass;       // [n, kBins], for draws from some
  uint32_t* bin_count;  // [n, kBins]
  Best* segment_best;   // [n, segments]
  float* best;          // [n]
  int32_t segments;

  static int32_t segments_of(int32_t vocab) { return (vocab + kSegment - 1) / kSegment; }
  static size_t row_bytes(int32_t vocab) {
    return static_cast<size_t>(segments_of(vocab)) * (sizeof(Mass) + sizeof(Best)) +
           kBins * (sizeof(Mass) + sizeof(uint32_t)) + sizeof(float);
  }

  Scratch(void* memory, int32_t vocab, size_t n) : segments(segments_of(vocab)) {
    segment_mass = static_cast<Mass*>(memory);
    bin_mass = segment_mass + n * segments;
    bin_count = reinterpret_cast<uint32_t*>(bin_mass + n * kBins);
    segment_best = reinterpret_cast<Best*>(bin_count + n * kBins);
    best = reinterpret_cast<float*>(segment_best + n * segments);
  }
};

// The best of a block's threads, in the first of them.
__device__ inline Best block_best(Best best) {
  SLICELLM_SHARED(Best, warp_best, kThreads / 32);
  for (int offset = 16; offset > 0; offset /= 2) {
    best = better(best, Best{__shfl_down_sync(0xffffffffu, best.value, offset),
                             __shfl_down_sync(0xffffffffu, best.id, offset),
                             __shfl_down_sync(0xffffffffu, best.valid, offset)});
  }
  if (threadIdx.x % 32 == 0) warp_best[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int warp = 1; warp < kThreads / 32; ++warp) best = better(best, warp_best[warp]);
  }
  return best;
}

__global__ void __launch_bounds__(kThreads) best_kernel(SampleCall call, Scratch scratch) {
  const float* logits = call.logits + static_cast<int64_t>(call.rows[blockIdx.y].row) * call.vocab;
  const int first = blockIdx.x * kSegment, last = min(first + kSegment, call.vocab);
  Best best{-INFINITY, INT_MAX, 1};
  for (int i = first + threadIdx.x; i < last; i += kThreads) {
    best = better(best, Best{logits[i], i, logits[i] <= FLT_MAX});
  }
  best = block_best(best);
  if (threadIdx.x == 0) scratch.segment_best[blockIdx.y * scratch.segments + blockIdx.x] = best;
}

// One block a row.
__global__ void __launch_bounds__(kThreads) finish_best_kernel(SampleCall call, Scratch scratch) {
  const SampleRow& sample = call.rows[blockIdx.x];
  Best best{-INFINITY, INT_MAX, 1};
  for (int i = threadIdx.x; i < scratch.segments; i += kThreads) {
    best = better(best, scratch.segment_best[blockIdx.x * scratch.segments + i]);
  }
  best = block_best(best);
  if (threadIdx.x == 0) {
    scratch.best[blockIdx.x] = best.value;
    call.tokens[blockIdx.x] = best.valid != 0 && best.value > -INFINITY ? best.id : -1;
  }
  if (sample.temperature == 0 || !sample.cuts(call.vocab)) return;
  for (int i = threadIdx.x; i < kBins; i += kThreads) {
    scratch.bin_mass[blockIdx.x * kBins + i] = 0;
    scratch.bin_count[blockIdx.x * kBins + i] = 0;
  }
}

__device__ inline Row row_of(const SampleCall& call, const Scratch& scratch, unsigned index) {
  const SampleRow& sample = call.rows[index];
  return Row{call.logits + static_cast<int64_t>(sample.row) * call.vocab, call.vocab,
             scratch.best[index], sample.temperature};
}

// Nothing is drawn for greedy rows, nor for those without a valid best token.
__device__ inline bool is_drawn(const SampleCall& call, unsigned index) {
  return call.rows[index].temperature != 0 && call.tokens[index] >= 0;
}

__global__ void __launch_bounds__(kThreads) weigh_kernel(SampleCall call, Scratch scratch) {
  if (!is_drawn(call, blockIdx.y)) return;
  const Row row = row_of(call, scratch, blockIdx.y);
  const int first = blockIdx.x * kSegment, last = min(first + kSegment, call.vocab);
  if (!call.rows[blockIdx.y].cuts(call.vocab)) {
    Mass mass = 0;
    for (int i = first + threadIdx.x; i < last; i += kThreads) mass += mass_of(row, row.logits[i]);
    mass = block_total(mass);
    if (threadIdx.x == 0) scratch.segment_mass[blockIdx.y * scratch.segments + blockIdx.x] = mass;
    return;
  }
  SLICELLM_SHARED(Mass, mass, kBins);
  SLICELLM_SHARED(uint32_t, count, kBins);
  for (int i = threadIdx.x; i < kBins; i += kThreads) mass[i] = count[i] = 0;
  __syncthreads();
  for (int i = first + threadIdx.x; i < last; i += kThreads) {
    const int bin = bin_of(row, row.logits[i]);
    atomicAdd(&mass[bin], mass_of(row, row.logits[i]));
    atomicAdd(&count[bin], 1u);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kBins; i += kThreads) {
    if (count[i] == 0) continue;
    atomicAdd(&scratch.bin_mass[blockIdx.y * kBins + i], mass[i]);
    atomicAdd(&scratch.bin_count[blockIdx.y * kBins + i], count[i]);
  }
}

// floor(u * mass) for u = uniform / 2^53.
__device__ inline Mass share_of(Mass mass, uint64_t uniform) {
  return __umul64hi(uniform << 11, mass);
}

// Draws from all tokens, in order of their ids.
__device__ inline void draw_from_all(const Row& row, const Mass* segment_mass, int segments,
                                     uint64_t uniform, int32_t* token) {
  SLICELLM_SHARED(Mass, found_before, 1);
  SLICELLM_SHARED(int, found_segment, 1);
  const int thread = threadIdx.x;
  Mass mass = thread < segments ? segment_mass[thread] : 0;
  Mass total;
  Mass before = exclusive_scan(mass, &total);
  const Mass target = share_of(total, uniform);
  if (before <= target && target < before + mass) {
    found_before[0] = before;
    found_segment[0] = thread;
  }
  __syncthreads();
  constexpr int kEach = kSegment / kDrawThreads;
  const int first = found_segment[0] * kSegment + thread * kEach;
  const int last = min(first + kEach, row.vocab);
  mass = 0;
  for (int i = first; i < last; ++i) mass += mass_of(row, row.logits[i]);
  before = found_before[0] + exclusive_scan(mass, &total);
  for (int i = first; i < last; ++i) {
    mass = mass_of(row, row.logits[i]);
    if (before <= target && target < before + mass) *token = i;
    before += mass;
  }
}

// Draws from a prefix of the tokens in order of their logits. A prefix is told by its mass.
__device__ inline void draw_from_best(const Row& row, const Bins& bins, const SampleRow& sample,
                                      int32_t* token) {
  Mass kept = 0;
  for (int i = threadIdx.x; i < kBins; i += blockDim.x) kept += bins.mass[i];
  kept = block_total(kept);
  if (sample.top_k > 0 && sample.top_k < row.vocab) {
    const Group last = find_logit(row, bins, Rank::count, sample.top_k - 1);
    kept = last.mass_before + (sample.top_k - last.count_before) * last.each;
  }
  if (sample.top_p < 1) {
    const double wanted = ceil(sample.top_p * static_cast<double>(kept));
    const Mass least = wanted < 1 ? 1 : min(static_cast<Mass>(wanted), kept);
    const Group last = find_logit(row, bins, Rank::mass, least - 1);
    const Mass count = (least - last.mass_before + last.each - 1) / last.each;
    kept = last.mass_before + count * last.each;
  }
  if (sample.min_p > 0) kept = min(kept, mass_at_least(row, bins, sample.min_p));

  const Mass target = share_of(kept, sample.uniform);
  const Group drawn = find_logit(row, bins, Rank::mass, target);
  const auto rank = static_cast<uint32_t>((target - drawn.mass_before) / drawn.each);
  const int each = (row.vocab + blockDim.x - 1) / blockDim.x;
  const int first = threadIdx.x * each, last = min(first + each, row.vocab);
  uint32_t equal = 0, all;
  for (int i = first; i < last; ++i) equal += key_of(row.logits[i]) == drawn.key;
  uint32_t before = exclusive_scan(equal, &all);
  if (before > rank || rank >= before + equal) return;
  for (int i = first; i < last; ++i) {
    if (key_of(row.logits[i]) == drawn.key && before++ == rank) *token = i;
  }
}

// One block a row.
__global__ void __launch_bounds__(kDrawThreads) draw_kernel(SampleCall call, Scratch scratch) {
  const unsigned index = blockIdx.x;
  if (!is_drawn(call, index)) return;
  const SampleRow sample = call.rows[index];
  const Row row = row_of(call, scratch, index);
  if (sample.cuts(call.vocab)) {
    const Bins bins{scratch.bin_mass + index * kBins, scratch.bin_count + index * kBins};
    draw_from_best(row, bins, sample, call.tokens + index);
  } else {
    draw_from_all(row, scratch.segment_mass + index * scratch.segments, scratch.segments,
                  sample.uniform, call.tokens + index);
  }
}

}  // namespace

size_t sample_workspace_bytes(int32_t vocab, int32_t n) {
  return Scratch::row_bytes(vocab) * static_cast<size_t>(n);
}

void sample_rows(cudaStream_t stream, const SampleCall& call) {
  if (call.n == 0) return;
  const Scratch scratch(call.workspace, call.vocab, static_cast<size_t>(call.n));
  const auto rows = static_cast<unsigned>(call.n);
  const dim3 grid(static_cast<unsigned>(scratch.segments), rows);
  SLICELLM_LAUNCH(best_kernel, grid, kThreads, 0, stream, call, scratch);
  SLICELLM_LAUNCH(finish_best_kernel, rows, kThreads, 0, stream, call, scratch);
  if (call.draws) {
    SLICELLM_LAUNCH(weigh_kernel, grid, kThreads, 0, stream, call, scratch);
    SLICELLM_LAUNCH(draw_kernel, rows, kDrawThreads, 0, stream, call, scratch);
  }
  SLICELLM_CUDA_CHECK(cudaGetLastError());
}

}  // namespace slicellm::cuda
