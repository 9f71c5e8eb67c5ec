#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <span>
#include <vector>

#include "cuda/linear_layout.h"
#include "slicellm/tensor.h"

// Linear layers on the GPU: y[n, out] = x[n, in] * W^T + bias, for sm_80 and newer.
namespace slicellm::cuda {

// A layer packed in host memory, to be copied to the device as it is (256-byte aligned there).
struct HostLinear {
  LinearLayout layout{};
  std::vector<std::byte> data;
};

// Packs matrices stacked by rows, as Device::pack describes. int4 and int8 weights with groups of
// 32 * 2^n columns, or one group a row, keep their codes; those with other groups, and float32
// ones, become float16. Parallel on `threads` threads. Throws Error(unsupported) for matrices that
// do not fit together, and for values that float16 cannot hold (bfloat16 weights stay bfloat16).
HostLinear pack_linear(std::span<const Weight> matrices, std::span<const std::vector<float>> biases,
                       bool gated, int threads);

// What happens to a layer's products (bias added) before they are stored.
enum class Epilogue {
  store,      // out = y
  add,        // out = alpha * out + y
  silu_gate,  // out[n, out / 2] = silu(gate) * up; for gated layers, and only for them
  gelu_tanh,  // out = gelu(y)
};

struct LinearCall {
  const LinearLayout* layout = nullptr;
  const void* data = nullptr;  // device: HostLinear::data
  // device, 16-byte aligned: [n, layout->input_width()], bfloat16 for bfloat16 weights, else
  // float16; columns in..input_width() are zero.
  const void* input = nullptr;
  int n = 0;
  Epilogue epilogue = Epilogue::store;
  float alpha = 0;
  float* out = nullptr;  // device: [n, layout->outputs()]
};

// Device memory that run_linear may use for sums that are not yet complete, and the size of the
// device that it shares work out for (DeviceInfo in runtime.h). Results do not depend on the size.
struct LinearWorkspace {
  float* sums = nullptr;  // at least linear_workspace_bytes(multiprocessors)
  int multiprocessors = 0;
  size_t shared_per_block = 0;
};
size_t linear_workspace_bytes(int multiprocessors);

// Starts the layer on `stream`. A row of the result does not depend on n, bit for bit. n may be 0.
// Errors of the launch throw, as runtime.h's check does.
void run_linear(cudaStream_t stream, const LinearWorkspace& workspace, const LinearCall& call);

}  // namespace slicellm::cuda
