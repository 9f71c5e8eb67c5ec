#include "cpu/row_kernels_impl.h"

namespace slicellm::cpu {

const RowKernelTable kRowKernelsAvx512 = kRowKernelTable;

}  // namespace slicellm::cpu
