#include "cpu/row_kernels.h"

#include "cpu/ops_cpu.h"

namespace slicellm::cpu {
namespace {

template <const RowKernelTable& table>
void norm_row(const float* x, int64_t width, const NormWeights& norm, float* out) {
  if (norm.kind == NormKind::rms) {
    table.rms_norm(x, width, norm.weight.data(), norm.eps, out);
  } else {
    table.layer_norm(x, width, norm.weight.data(), norm.bias.data(), norm.eps, out);
  }
}

template <const RowKernelTable& table>
const RowKernels& kernels_of() {
  static const RowKernels kernels = {norm_row<table>, table.silu_gate, table.gelu_tanh};
  return kernels;
}

}  // namespace

const RowKernels& row_kernels(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::avx512:
      return kernels_of<kRowKernelsAvx512>();
    case Isa::avx2:
      return kernels_of<kRowKernelsAvx2>();
#endif
    default:
      return kernels_of<kRowKernelsPortable>();
  }
}

}  // namespace slicellm::cpu
