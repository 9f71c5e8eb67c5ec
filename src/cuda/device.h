#pragma once

#include <atomic>
#include <string>
#include <vector>

#include "cuda/attention.h"
#include "cuda/linear.h"
#include "cuda/memory.h"
#include "cuda/row_kernels.h"
#include "cuda/runtime.h"
#include "cuda/signature.h"
#include "cuda/staging.h"
#include "cuda/upload.h"
#include "slicellm/ops.h"

namespace slicellm::cuda {

// One GPU: activations are float32 in its memory, inputs of matrix products are rounded to 16 bits.
// All work goes to one stream, in the order of the calls, but for ops that are recorded
// (launch_on). Workspaces grow to what the largest step needs and are kept. All memory on the GPU
// is taken from one account, within the limit.
class CudaDevice final : public Device {
 public:
  CudaDevice(int index, const GpuOptions& options);

  std::string name() const override { return "cuda"; }
  std::string describe() const override;
  int threads() const override { return threads_; }  // that convert and pack weights

  std::unique_ptr<PackedLinear> pack(std::span<const Weight> matrices,
                                     std::span<const std::vector<float>> biases,
                                     ActivationType activation, bool gated) override;
  std::unique_ptr<PackedNorm> pack_norm(const NormWeights& norm) override;
  std::unique_ptr<PackedRope> pack_rope(std::shared_ptr<const RopeTable> table) override;
  std::unique_ptr<EmbeddingTable> embedding(const Weight& table) override;
  void finish_loading() override;
  std::unique_ptr<Activation> allocate(int64_t floats) override;
  std::unique_ptr<KvStorage> allocate_kv(const KvLayout& layout, int32_t blocks) override;
  size_t free_memory() const override;
  size_t workspace_bytes(const StepBounds& most) const override;
  std::string describe_memory() const override;
  size_t held_bytes() const override { return memory_.held(); }
  bool supports_kv(DType dtype) const override {
    return dtype == DType::float16 || dtype == DType::int8;
  }
  bool shares_host_memory() const override { return info_.integrated; }

  void read(const Activation& from, std::span<float> to) override;
  void write(std::span<const float> from, Activation& to) override;

  void begin_step(const Batch& batch, std::span<const int32_t> rows,
                  std::span<const AttentionShape> attention) override;
  void embed(std::span<const int32_t> tokens, const EmbeddingTable& table, Activation& x) override;
  void norm_linear(Activation& x, int64_t n, const PackedNorm& norm, const PackedLinear& linear,
                   bool normed_into_x, Activation& out) override;
  void rope_append_attend(const AttentionArgs& args) override;
  void linear_add(const Activation& in, int64_t n, const PackedLinear& linear, float alpha,
                  Activation& x) override;
  void norm_linear_act(Activation& x, int64_t n, const PackedNorm& norm, const PackedLinear& linear,
                       GateActivation act, bool normed_into_x, Activation& out) override;
  void logits(const Activation& x, std::span<const int32_t> rows, const PackedNorm& norm,
              const PackedLinear& head, Activation& logits) override;

  // Makes this GPU the calling thread's current one, as every op does.
  void select() const;
  const Stream& stream() const { return stream_; }
  const DeviceMemory& memory_account() const { return memory_; }

  // After begin_step: all that the launches of the step's ops take from the host, given one model
  // and KV storage.
  Signature signature() const;
  // Lets the ops of the step that was begun launch on `stream` from here on.
  void launch_on(const Stream& stream) { launch_stream_ = &stream; }

 private:
  struct Selected {  // before anything that lives on the GPU
    explicit Selected(int index);
    int index;
  };
  // A plan of this step, and where the kernels read it.
  struct Plan {
    AttentionPlan plan;
    const int32_t* image;
  };

  void run(const RowInput& input, const PackedNorm* norm, float* normed, const PackedLinear& linear,
           Epilogue epilogue, float alpha, Activation& out);
  void reserve_workspaces(size_t most_rows);
  const Plan& plan_for(const AttentionShape& shape) const;
  struct MemoryInfo {
    size_t free, total;  // bytes
  };
  MemoryInfo memory_info() const;

  Selected selected_;
  DeviceInfo info_;
  int threads_;
  double mem_ratio_;
  DeviceMemory memory_;
  Stream stream_;
  Uploader uploader_;
  StepStaging staging_;
  std::atomic<uint64_t> allocations_ = 0;  // activations and rotary tables made so far
  int64_t widest_input_ = 0;               // columns, of the linears packed so far
  DeviceBuffer linear_input_, linear_sums_;
  DeviceBuffer queries_, partials_, counters_;  // of attention

  // Of this step. Pointers are to what was staged.
  const Stream* launch_stream_ = &stream_;
  size_t logit_rows_ = 0;
  std::vector<int32_t> host_ids_;
  const int32_t* ids_ = nullptr;    // tokens, or -1 - place in drawn_
  const int32_t* drawn_ = nullptr;  // Batch::drawn
  const int32_t* rows_ = nullptr;   // of logits
  std::vector<Plan> plans_;
};

}  // namespace slicellm::cuda
