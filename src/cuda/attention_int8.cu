#include "cuda/attention_launch.h"

namespace slicellm::cuda {

const AttentionKernels kInt8Attention[4] = {
    kAttentionKernels<32, true>, kAttentionKernels<64, true>, kAttentionKernels<96, true>,
    kAttentionKernels<128, true>};

}  // namespace slicellm::cuda
