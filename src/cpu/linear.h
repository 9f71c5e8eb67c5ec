#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cpu/linear_layout.h"
#include "cpu/memory.h"
#include "cpu/ops_cpu.h"
#include "cpu/thread_pool.h"
#include "slicellm/ops.h"

namespace slicellm::cpu {

const LinearKernels& linear_kernels(Isa isa);

// What decides the layout of a packed linear, besides the instruction set.
struct LinearShape {
  DType dtype;
  bool integer;  // int8/int4 weights meet quantised activations
  bool compact;  // see LinearLayout
  bool gated;
  int64_t in, out;
  int64_t group;  // int types: columns of a group
};

// A linear layer packed for one instruction set (see linear_layout.h). Immutable. The panels of a
// gated linear alternate: gate rows, then the up rows that meet them.
class CpuLinear : public PackedLinear {
 public:
  // Plans the layout; panels and bias come from LinearPacker or restore_linear.
  CpuLinear(Isa isa, const LinearShape& shape);

  int64_t in_features() const override { return layout_.in; }
  int64_t out_features() const override { return shape_.out; }
  size_t bytes() const override { return layout_.panel_bytes * panels_; }
  PackedImage image() const override;

  const LinearLayout& layout() const { return layout_; }
  const LinearKernel& kernel() const { return *kernel_; }
  bool gated() const { return shape_.gated; }
  const float* bias() const { return bias_.empty() ? nullptr : bias_.data(); }  // [out] or null
  // A unit is what one kernel result covers: a panel, or the two panels of a gated linear.
  int64_t units() const { return shape_.gated ? panels_ / 2 : panels_; }
  const std::byte* panel(int64_t index) const {
    return data_.get() + index * static_cast<int64_t>(layout_.panel_bytes);
  }

 private:
  friend class LinearPacker;
  friend std::unique_ptr<CpuLinear> restore_linear(Isa, WeightArena&, const std::string&, size_t,
                                                   bool, const Device::ReadPanels&);

  void plan_int();
  void cut_blocks();

  LinearShape shape_;
  LinearLayout layout_{};
  const LinearKernel* kernel_ = nullptr;
  std::vector<uint8_t> block_steps_;
  std::vector<float> bias_;
  std::shared_ptr<std::byte> data_;
  int64_t panels_ = 0;
};

// Device::pack. Float weights always meet float32 activations.
std::unique_ptr<CpuLinear> pack_linear(ThreadPool& pool, Isa isa, WeightArena& arena,
                                       std::span<const Weight> matrices,
                                       std::span<const std::vector<float>> biases,
                                       ActivationType activation, bool gated);
// Device::restore.
std::unique_ptr<CpuLinear> restore_linear(Isa isa, WeightArena& arena, const std::string& about,
                                          size_t panel_bytes, bool gated,
                                          const Device::ReadPanels& read);

// What happens to a linear's products (bias added) before they are stored.
enum class Epilogue {
  store,      // out = y
  add,        // out = alpha * out + y
  silu_gate,  // out[inner] = silu(gate) * up; for gated linears, and only for them
  gelu_tanh,  // out = gelu(y)
};

struct LinearInput {
  const float* x = nullptr;           // [*, in]
  int64_t n = 0;                      // tokens
  const int32_t* rows = nullptr;      // [n] rows of x, or null for rows 0..n-1
  const NormWeights* norm = nullptr;  // applied to each row first
  float* normed = nullptr;            // if set, [n, in] receives the normed rows; may be x
};

struct LinearOutput {
  Epilogue epilogue = Epilogue::store;
  float alpha = 0;
  float* out = nullptr;  // [n, out_features], or half of that for silu_gate
};

// Scratch memory of run_linear, kept from call to call.
struct LinearWorkspace {
  Scratch tiles;
  std::vector<Scratch> per_thread;
};

// Computes one linear layer for all tokens; each weight is read from memory once. Bit-equal results
// whatever the number of tokens and threads.
void run_linear(ThreadPool& pool, Isa isa, LinearWorkspace& workspace, const CpuLinear& linear,
                const LinearInput& input, const LinearOutput& output);

}  // namespace slicellm::cpu
