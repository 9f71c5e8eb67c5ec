#include "cpu/row_kernels_impl.h"

namespace slicellm::cpu {

const RowKernelTable kRowKernelsAvx2 = kRowKernelTable;

}  // namespace slicellm::cpu
