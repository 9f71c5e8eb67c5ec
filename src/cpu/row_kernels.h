#pragma once

#include <cstdint>

// The kernels behind RowKernels (ops_cpu.h) in plain pointers, one table per instruction set.
namespace slicellm::cpu {

struct RowKernelTable {
  // out = x / sqrt(mean(x^2) + eps) * weight
  void (*rms_norm)(const float* x, int64_t width, const float* weight, float eps, float* out);
  // out = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias
  void (*layer_norm)(const float* x, int64_t width, const float* weight, const float* bias,
                     float eps, float* out);
  void (*silu_gate)(const float* gate, const float* up, int64_t count, float* out);
  void (*gelu_tanh)(const float* x, int64_t count, float* out);
};

extern const RowKernelTable kRowKernelsPortable;
#if defined(__x86_64__)
extern const RowKernelTable kRowKernelsAvx2;
extern const RowKernelTable kRowKernelsAvx512;
#endif

}  // namespace slicellm::cpu
