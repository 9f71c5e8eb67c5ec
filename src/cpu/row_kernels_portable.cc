#include "cpu/row_kernels_impl.h"

namespace slicellm::cpu {

const RowKernelTable kRowKernelsPortable = kRowKernelTable;

}  // namespace slicellm::cpu
