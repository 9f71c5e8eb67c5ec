#pragma once

#include <string>
#include <vector>

#include "cpu/isa.h"
#include "cpu/linear.h"
#include "cpu/memory.h"
#include "cpu/numa.h"
#include "cpu/thread_pool.h"
#include "slicellm/ops.h"

namespace slicellm::cpu {

// Device for the machine's own cores: float32 activations in host memory. With `nodes` ("numa") the
// rows of every matrix are divided over them: each node's threads stay on its CPUs and read weights
// of their own node's memory, and K and V lie on all in turn. Each result is computed whole, by one
// thread, so nothing is added up over nodes, and the bits are those of the plain device.
class CpuDevice : public Device {
 public:
  explicit CpuDevice(const CpuOptions& options);
  CpuDevice(const std::string& isa, std::vector<NumaNode> nodes);

  std::string name() const override { return nodes_.empty() ? "cpu" : "numa"; }
  std::string describe() const override;
  int threads() const override { return pool_.threads(); }
  // Of the threads, so far (see ThreadPool).
  uint64_t barriers() const { return pool_.barriers(); }

  std::unique_ptr<PackedLinear> pack(std::span<const Weight> matrices,
                                     std::span<const std::vector<float>> biases,
                                     ActivationType activation, bool gated) override;
  std::string packed_form() const override;
  std::unique_ptr<PackedLinear> restore(const std::string& about, size_t panel_bytes, bool gated,
                                        const ReadPanels& read) override;
  std::unique_ptr<PackedNorm> pack_norm(const NormWeights& norm) override;
  std::unique_ptr<PackedRope> pack_rope(std::shared_ptr<const RopeTable> table) override;
  std::unique_ptr<EmbeddingTable> embedding(const Weight& table) override;
  std::unique_ptr<Activation> allocate(int64_t floats) override;
  std::unique_ptr<KvStorage> allocate_kv(const KvLayout& layout, int32_t blocks) override;
  size_t free_memory() const override;
  std::string describe_memory() const override;
  bool supports_kv(DType dtype) const override {
    return dtype == DType::float16 || dtype == DType::float32 || dtype == DType::int8;
  }
  bool shares_host_memory() const override { return true; }

  void read(const Activation& from, std::span<float> to) override;
  void write(std::span<const float> from, Activation& to) override;

  void begin_step(const Batch&, std::span<const int32_t>,
                  std::span<const AttentionShape>) override {}
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

 private:
  Isa isa_;
  std::vector<NumaNode> nodes_;
  ThreadPool pool_;
  WeightArena arena_;
  LinearWorkspace linear_workspace_;
  Scratch attention_scratch_;
};

}  // namespace slicellm::cpu
