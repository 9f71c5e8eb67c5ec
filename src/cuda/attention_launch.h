#pragma once

#include "cuda/attention_kernel.h"
#include "cuda/runtime.h"

namespace slicellm::cuda {

// The kernels for one padded head dimension and type of K and V.
struct AttentionKernels {
  void (*launch)(cudaStream_t stream, const AttentionParams& params, bool wide, dim3 grid);
  // Lets them use the shared memory that they need, on the current device.
  void (*prepare)();
};

// For one type of K and V, by padded_head_dim / 32 - 1. A source file each, so that they compile
// side by side.
extern const AttentionKernels kHalfAttention[4];
extern const AttentionKernels kInt8Attention[4];

template <int kDim, bool kInt8>
constexpr AttentionKernels kAttentionKernels = {
    [](cudaStream_t stream, const AttentionParams& params, bool wide, dim3 grid) {
      constexpr size_t kShared = kAttentionSharedBytes<kDim, kInt8>;
      if (wide) {
        SLICELLM_LAUNCH((attend_kernel<kDim, kInt8, true>), grid, dim3(kAttentionThreads), kShared,
                        stream, params);
      } else {
        SLICELLM_LAUNCH((attend_kernel<kDim, kInt8, false>), grid, dim3(kAttentionThreads), kShared,
                        stream, params);
      }
    },
    [] {
      constexpr auto kAttribute = cudaFuncAttributeMaxDynamicSharedMemorySize;
      constexpr int kShared = kAttentionSharedBytes<kDim, kInt8>;
      SLICELLM_CUDA_CHECK(
          cudaFuncSetAttribute(attend_kernel<kDim, kInt8, true>, kAttribute, kShared));
      SLICELLM_CUDA_CHECK(
          cudaFuncSetAttribute(attend_kernel<kDim, kInt8, false>, kAttribute, kShared));
    }};

}  // namespace slicellm::cuda
