#include "cpu/attention_impl.h"

namespace slicellm::cpu {

const AttentionKernels kAttentionKernelsPortable = kAttentionKernelTable;

}  // namespace slicellm::cpu
