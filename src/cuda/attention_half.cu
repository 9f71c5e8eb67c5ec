#include "cuda/attention_launch.h"

namespace slicellm::cuda {

const AttentionKernels kHalfAttention[4] = {
    kAttentionKernels<32, false>, kAttentionKernels<64, false>, kAttentionKernels<96, false>,
    kAttentionKernels<128, false>};

}  // namespace slicellm::cuda
