#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

// The kernels of DeviceSampler, by the rules of engine/sampling.h: temperature, top-k, top-p, min-p,
// then one draw; equal logits rank by token id.
//
// Nothing is sorted. A token's weight exp((logit - best) / temperature) is held as a whole number
// of 2^-43, so sums do not depend on their order; they are the CPU's but for that rounding, and so
// is the token, unless the uniform number falls within about 1e-9 of a token's border. Which token
// comes at a given mass (or count) in order of logits is found by histograms: first over steps of
// 1/64 of a logit below the best, then over the bits of the logits within a step.
namespace slicellm::cuda {

constexpr int32_t kMaxVocabulary = 1 << 20;  // so that masses fit in 64 bits

// How the token of one row is drawn.
struct SampleRow {
  double temperature = 0;  // 0 = the best token
  double top_p = 1, min_p = 0;
  uint64_t uniform = 0;  // the number in [0, 1) to draw with, times 2^53
  int32_t row = 0;       // of the logits
  int32_t top_k = 0;     // 0 = all

  // Whether the drawn tokens are a prefix of the order of logits.
  __host__ __device__ bool cuts(int32_t vocab) const {
    return (top_k > 0 && top_k < vocab) || top_p < 1 || min_p > 0;
  }
};

struct SampleCall {
  const float* logits = nullptr;  // [*, vocab]
  int32_t vocab = 0;              // 1 to kMaxVocabulary
  const SampleRow* rows = nullptr;
  int32_t n = 0;              // rows
  bool draws = false;         // some row's temperature is not 0
  void* workspace = nullptr;  // sample_workspace_bytes(vocab, n), 16-byte aligned
  int32_t* tokens = nullptr;  // [n]; -1 where the logits hold NaN or infinity, or nothing finite
};

size_t sample_workspace_bytes(int32_t vocab, int32_t n);

// All pointers are to device memory.
void sample_rows(cudaStream_t stream, const SampleCall& call);

}  // namespace slicellm::cuda
