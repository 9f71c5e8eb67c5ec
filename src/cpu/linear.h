#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cpu/memory.h"
#include "cpu/ops_cpu.h"
#include "cpu/thread_pool.h"
#include "slicellm/ops.h"

namespace slicellm::cpu {

// What happens to the products of one linear before they are stored.
enum class Epilogue {
  store,      // out = y
  add,        // out = alpha * out + y
  silu_gate,  // out[inner] = silu(y[gate]) * y[up]
  gelu_tanh,  // out = gelu(y)
};

class CpuLinear : public PackedLinear {
 public:
  CpuLinear(std::vector<float> weight, std::vector<float> bias, int64_t in, int64_t out)
      : weight_(std::move(weight)), bias_(std::move(bias)), in_(in), out_(out) {}
  int64_t in_features() const override { return in_; }
  int64_t out_features() const override { return out_; }
  size_t bytes() const override { return weight_.size() * sizeof(float); }
  const float* weight() const { return weight_.data(); }
  const std::vector<float>& bias() const { return bias_; }

 private:
  std::vector<float> weight_, bias_;
  int64_t in_, out_;
};

std::unique_ptr<CpuLinear> pack_linear(std::span<const Weight> matrices,
                                       std::span<const std::vector<float>> biases);

// out[n, width] = epilogue(x[n, in] * W^T + bias); rows of `out` are out_stride floats apart.
void run_linear(ThreadPool& pool, Isa isa, Scratch& scratch, const CpuLinear& linear,
                const float* x, int64_t n, Epilogue epilogue, float alpha, float* out,
                int64_t out_stride);

}  // namespace slicellm::cpu
