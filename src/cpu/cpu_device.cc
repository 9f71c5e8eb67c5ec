#include "cpu/cpu_device.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "cpu/kv_storage.h"
#include "cpu/linear.h"
#include "cpu/ops_cpu.h"
#include "cpu/rope.h"
#include "cpu/system_memory.h"
#include "slicellm/error.h"

namespace slicellm::cpu {
namespace {

class CpuActivation : public Activation {
 public:
  explicit CpuActivation(int64_t floats)
      : floats_(floats), memory_(allocate_bytes(size_t{4} * floats, "activations")) {}
  float* data() override { return reinterpret_cast<float*>(memory_.get()); }
  int64_t capacity() const override { return floats_; }

 private:
  int64_t floats_;
  std::shared_ptr<std::byte> memory_;
};

class CpuNorm : public PackedNorm {
 public:
  explicit CpuNorm(const NormWeights& weights) : weights_(weights) {}
  int64_t width() const override { return static_cast<int64_t>(weights_.weight.size()); }
  const NormWeights& weights() const { return weights_; }

 private:
  NormWeights weights_;
};

const NormWeights& weights_of(const PackedNorm& norm) {
  return static_cast<const CpuNorm&>(norm).weights();
}

void check_span(const Activation& activation, size_t floats) {
  if (static_cast<int64_t>(floats) <= activation.capacity()) return;
  throw Error(ErrorKind::invalid_argument, "floats", std::to_string(floats),
              "at most the activation's " + std::to_string(activation.capacity()));
}

const CpuLinear& as_cpu(const PackedLinear& linear) {
  return static_cast<const CpuLinear&>(linear);
}

const float* data_of(const Activation& activation) {
  return const_cast<Activation&>(activation).data();
}

}  // namespace

CpuDevice::CpuDevice(const CpuOptions& options)
    : isa_(choose_isa(options.isa)),
      pool_(options.threads == 0 ? usable_cores() : options.threads) {}

CpuDevice::CpuDevice(const std::string& isa, std::vector<NumaNode> nodes)
    : isa_(choose_isa(isa)), nodes_(std::move(nodes)), pool_(nodes_), arena_(nodes_) {}

std::string CpuDevice::describe() const {
  return cpu_model_name() + ", " + to_string(isa_) + ", " + std::to_string(threads()) +
         (threads() == 1 ? " thread" : " threads") +
         (nodes_.empty() ? "" : ", NUMA nodes: " + std::to_string(nodes_.size()));
}

std::unique_ptr<PackedLinear> CpuDevice::pack(std::span<const Weight> matrices,
                                              std::span<const std::vector<float>> biases,
                                              ActivationType activation, bool gated) {
  return pack_linear(pool_, isa_, arena_, matrices, biases, activation, gated);
}

std::string CpuDevice::packed_form() const {
  return std::string(to_string(isa_)) + " layout " + std::to_string(kPackedVersion);
}

std::unique_ptr<PackedLinear> CpuDevice::restore(const std::string& about, size_t panel_bytes,
                                                 bool gated, const ReadPanels& read) {
  return restore_linear(isa_, arena_, about, panel_bytes, gated, read);
}

std::unique_ptr<PackedNorm> CpuDevice::pack_norm(const NormWeights& norm) {
  return std::make_unique<CpuNorm>(norm);
}

std::unique_ptr<PackedRope> CpuDevice::pack_rope(std::shared_ptr<const RopeTable> table) {
  return std::make_unique<CpuRope>(std::move(table));
}

std::unique_ptr<EmbeddingTable> CpuDevice::embedding(const Weight& table) {
  return make_embedding(table);
}

std::unique_ptr<Activation> CpuDevice::allocate(int64_t floats) {
  if (floats < 0 || floats > std::numeric_limits<int64_t>::max() / 8) {
    throw Error(ErrorKind::resource, "activations", std::to_string(floats) + " floats",
                "an amount of memory that the system can give");
  }
  return std::make_unique<CpuActivation>(floats);
}

std::unique_ptr<KvStorage> CpuDevice::allocate_kv(const KvLayout& layout, int32_t blocks) {
  auto kv = std::make_unique<CpuKvStorage>(layout, blocks);
  interleave(nodes_, kv->keys(0, 0, 0), layout.block_bytes() * blocks);
  return kv;
}

size_t CpuDevice::free_memory() const { return available_memory(); }

std::string CpuDevice::describe_memory() const {
  return std::to_string(available_memory()) + " free bytes";
}

void CpuDevice::read(const Activation& from, std::span<float> to) {
  check_span(from, to.size());
  std::copy_n(data_of(from), to.size(), to.data());
}

void CpuDevice::write(std::span<const float> from, Activation& to) {
  check_span(to, from.size());
  std::copy(from.begin(), from.end(), to.data());
}

void CpuDevice::embed(std::span<const int32_t> tokens, const EmbeddingTable& table, Activation& x) {
  embed_rows(pool_, tokens, table, x.data());
}

void CpuDevice::norm_linear(Activation& x, int64_t n, const PackedNorm& norm,
                            const PackedLinear& linear, bool normed_into_x, Activation& out) {
  LinearInput input{.x = x.data(), .n = n, .norm = &weights_of(norm)};
  if (normed_into_x) input.normed = x.data();
  run_linear(pool_, isa_, linear_workspace_, as_cpu(linear), input, {.out = out.data()});
}

void CpuDevice::rope_append_attend(const AttentionArgs& args) {
  cpu::rope_append_attend(pool_, isa_, attention_scratch_, args);
}

void CpuDevice::linear_add(const Activation& in, int64_t n, const PackedLinear& linear, float alpha,
                           Activation& x) {
  run_linear(pool_, isa_, linear_workspace_, as_cpu(linear), {.x = data_of(in), .n = n},
             {.epilogue = Epilogue::add, .alpha = alpha, .out = x.data()});
}

void CpuDevice::norm_linear_act(Activation& x, int64_t n, const PackedNorm& norm,
                                const PackedLinear& linear, GateActivation act, bool normed_into_x,
                                Activation& out) {
  LinearInput input{.x = x.data(), .n = n, .norm = &weights_of(norm)};
  if (normed_into_x) input.normed = x.data();
  const Epilogue epilogue =
      act == GateActivation::silu_gate ? Epilogue::silu_gate : Epilogue::gelu_tanh;
  run_linear(pool_, isa_, linear_workspace_, as_cpu(linear), input,
             {.epilogue = epilogue, .out = out.data()});
}

void CpuDevice::logits(const Activation& x, std::span<const int32_t> rows, const PackedNorm& norm,
                       const PackedLinear& head, Activation& logits) {
  const LinearInput input{.x = data_of(x),
                          .n = static_cast<int64_t>(rows.size()),
                          .rows = rows.data(),
                          .norm = &weights_of(norm)};
  run_linear(pool_, isa_, linear_workspace_, as_cpu(head), input, {.out = logits.data()});
}

}  // namespace slicellm::cpu

namespace slicellm {

std::shared_ptr<Device> make_cpu_device(const CpuOptions& options) {
  return std::make_shared<cpu::CpuDevice>(options);
}

std::shared_ptr<Device> make_numa_device(const CpuOptions& options) {
  return std::make_shared<cpu::CpuDevice>(options.isa, cpu::numa_nodes(options.threads));
}

}  // namespace slicellm
