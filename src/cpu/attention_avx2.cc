#include "cpu/attention_impl.h"

namespace slicellm::cpu {

const AttentionKernels kAttentionKernelsAvx2 = kAttentionKernelTable;

}  // namespace slicellm::cpu
