#include "cpu/attention_impl.h"

namespace slicellm::cpu {

const AttentionKernels kAttentionKernelsAvx512 = kAttentionKernelTable;

}  // namespace slicellm::cpu
