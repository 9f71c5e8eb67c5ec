#include "cpu/linear.h"

namespace slicellm::cpu {

std::unique_ptr<CpuLinear> pack_linear(std::span<const Weight> matrices,
                                       std::span<const std::vector<float>> biases) {
  const int64_t in = matrices.front().cols();
  std::vector<float> weight, bias;
  for (size_t i = 0; i < matrices.size(); ++i) {
    const int64_t rows = matrices[i].rows();
    const size_t first = weight.size();
    weight.resize(first + rows * in);
    decode(matrices[i], 0, rows * in, weight.data() + first);
    const bool has_bias = i < biases.size() && !biases[i].empty();
    for (int64_t r = 0; r < rows; ++r) bias.push_back(has_bias ? biases[i][r] : 0.0f);
  }
  const auto out = static_cast<int64_t>(bias.size());
  return std::make_unique<CpuLinear>(std::move(weight), std::move(bias), in, out);
}

void run_linear(ThreadPool& pool, Isa isa, Scratch& scratch, const CpuLinear& linear,
                const float* x, int64_t n, Epilogue epilogue, float alpha, float* out,
                int64_t out_stride) {
  const int64_t in = linear.in_features(), rows = linear.out_features();
  float* y = scratch.get<float>(n * rows);
  pool.parallel_for(rows, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t t = 0; t < n; ++t) {
        float sum = linear.bias()[r];
        for (int64_t k = 0; k < in; ++k) sum += linear.weight()[r * in + k] * x[t * in + k];
        y[t * rows + r] = sum;
      }
    }
  });
  const RowKernels& kernels = row_kernels(isa);
  for (int64_t t = 0; t < n; ++t) {
    const float* from = y + t * rows;
    float* to = out + t * out_stride;
    switch (epilogue) {
      case Epilogue::store:
        for (int64_t r = 0; r < rows; ++r) to[r] = from[r];
        break;
      case Epilogue::add:
        for (int64_t r = 0; r < rows; ++r) to[r] = alpha * to[r] + from[r];
        break;
      case Epilogue::silu_gate:
        kernels.silu_gate(from, from + rows / 2, rows / 2, to);
        break;
      case Epilogue::gelu_tanh:
        kernels.gelu_tanh(from, rows, to);
        break;
    }
  }
}

}  // namespace slicellm::cpu
