#pragma once

#include "cuda/attention_narrow.h"
#include "cuda/attention_wide.h"

namespace slicellm::cuda {

// Blocks of kAttentionThreads, a grid of (items, kv heads). A step without prefill takes the kernel
// without wide tiles, which needs fewer registers.
template <int kDim, bool kInt8, bool kWide>
__global__ void __launch_bounds__(kAttentionThreads, kWide ? 2 : 3)
    attend_kernel(const AttentionParams p) {
  SLICELLM_DYNAMIC_SHARED(std::byte, shared);
  const AttentionItem& item = p.items[blockIdx.x];
  if (item.rows == 0) return;
  if (kWide && item.rows > kNarrowRows) {
    wide_item<kDim, kInt8>(p, item, blockIdx.y, shared);
  } else {
    narrow_item<kDim, kInt8>(p, item, blockIdx.y, shared);
  }
}

}  // namespace slicellm::cuda
