#pragma once

#include <cuda_runtime.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "cuda/linear_layout.h"
#include "format/weight_stack.h"
#include "slicellm/tensor.h"

// Linear layers on the GPU: y[n, out] = x[n, in] * W^T + bias, for sm_80 and newer.
namespace slicellm::cuda {

// One of the parts of a packed layer: weights, scales, offsets, bias. What belongs to a tile is
// `tile_bytes` long, 0 where the layer lacks the part; tiles follow each other from `at` on.
struct LinearPart {
  size_t at, tile_bytes;
};
using LinearParts = std::array<LinearPart, 4>;

// Packs matrices stacked by rows, as Device::pack describes, some tiles at a time. int4 and int8
// weights with groups of 32 * 2^n columns, or one group a row, keep their codes; those with other
// groups, and float32 ones, become float16. Parallel on `threads` threads. Throws
// Error(unsupported) for matrices that do not fit together, and for values that float16 cannot hold
// (bfloat16 weights stay bfloat16). Refers to the matrices, which must outlive it.
class LinearPacker {
 public:
  LinearPacker(std::span<const Weight> matrices, std::span<const std::vector<float>> biases,
               bool gated, int threads);

  const LinearLayout& layout() const { return layout_; }
  LinearParts parts() const;
  // Packs tiles [begin, end): to[p] is where part p of tile `begin` goes. The pages of the file
  // that were read for them are given back.
  void pack(int64_t begin, int64_t end, const std::array<std::byte*, 4>& to) const;

 private:
  struct Tile;  // where the parts of one tile go

  void choose_slices();
  void choose_kind();
  bool has_native_groups() const;
  int64_t source_row(int64_t tile, int r) const;
  void pack_tile(int64_t tile, const Tile& to) const;
  void pack_scales(const WeightStack::Row& source, int r, const Tile& to) const;
  void read_halves(const WeightStack::Row& source, uint16_t* to) const;
  void read_codes(const WeightStack::Row& source, uint8_t* to) const;
  void pack_halves(const uint16_t* row, int r, std::byte* tile) const;
  void pack_codes(const uint8_t* row, int r, std::byte* tile) const;
  void release(int64_t begin, int64_t end) const;

  WeightStack stack_;
  std::vector<float> bias_;
  int threads_;
  LinearLayout layout_{};
};

// What happens to a layer's products (bias added) before they are stored.
enum class Epilogue {
  store,      // out = y
  add,        // out = alpha * out + y
  silu_gate,  // out[n, out / 2] = silu(gate) * up; for gated layers, and only for them
  gelu_tanh,  // out = gelu(y)
};

struct LinearCall {
  const LinearLayout* layout = nullptr;
  const void* data = nullptr;  // device: the packed layer, 256-byte aligned
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
