#include <cmath>

#include "cpu/ops_cpu.h"

namespace slicellm::cpu {
namespace {

void norm(const float* x, int64_t width, const NormWeights& norm, float* out) {
  double mean = 0, square = 0;
  if (norm.kind == NormKind::layer) {
    for (int64_t i = 0; i < width; ++i) mean += x[i];
    mean /= static_cast<double>(width);
  }
  for (int64_t i = 0; i < width; ++i) square += (x[i] - mean) * (x[i] - mean);
  const double scale = 1 / std::sqrt(square / static_cast<double>(width) + norm.eps);
  for (int64_t i = 0; i < width; ++i) {
    const double bias = norm.bias.empty() ? 0 : norm.bias[i];
    out[i] = static_cast<float>((x[i] - mean) * scale * norm.weight[i] + bias);
  }
}

void silu_gate(const float* gate, const float* up, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
}

void gelu_tanh(const float* x, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    const float v = x[i];
    out[i] = 0.5f * v * (1 + std::tanh(0.7978845608f * (v + 0.044715f * v * v * v)));
  }
}

constexpr RowKernels kPortable = {norm, silu_gate, gelu_tanh};

}  // namespace

const RowKernels& row_kernels(Isa) { return kPortable; }

}  // namespace slicellm::cpu
