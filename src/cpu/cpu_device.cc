#include "cpu/cpu_device.h"

#include <limits>

#include "cpu/linear.h"
#include "cpu/ops_cpu.h"
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

std::string CpuDevice::describe() const {
  return cpu_model_name() + ", " + to_string(isa_) + ", " + std::to_string(threads()) +
         (threads() == 1 ? " thread" : " threads");
}

std::unique_ptr<PackedLinear> CpuDevice::pack(std::span<const Weight> matrices,
                                              std::span<const std::vector<float>> biases,
                                              ActivationType activation, bool gated) {
  return pack_linear(pool_, isa_, arena_, matrices, biases, activation, gated);
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
  return make_kv_storage(layout, blocks);
}

size_t CpuDevice::free_memory() const { return available_memory(); }

void CpuDevice::embed(std::span<const int32_t> tokens, const EmbeddingTable& table, Activation& x) {
  embed_rows(pool_, tokens, table, x.data());
}

void CpuDevice::norm_linear(Activation& x, int64_t n, const NormWeights& norm,
                            const PackedLinear& linear, bool normed_into_x, Activation& out) {
  LinearInput input{.x = x.data(), .n = n, .norm = &norm};
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

void CpuDevice::norm_linear_act(Activation& x, int64_t n, const NormWeights& norm,
                                const PackedLinear& linear, GateActivation act, bool normed_into_x,
                                Activation& out) {
  LinearInput input{.x = x.data(), .n = n, .norm = &norm};
  if (normed_into_x) input.normed = x.data();
  const Epilogue epilogue =
      act == GateActivation::silu_gate ? Epilogue::silu_gate : Epilogue::gelu_tanh;
  run_linear(pool_, isa_, linear_workspace_, as_cpu(linear), input,
             {.epilogue = epilogue, .out = out.data()});
}

void CpuDevice::logits(const Activation& x, std::span<const int32_t> rows, const NormWeights& norm,
                       const PackedLinear& head, float* logits) {
  const LinearInput input{
      .x = data_of(x), .n = static_cast<int64_t>(rows.size()), .rows = rows.data(), .norm = &norm};
  run_linear(pool_, isa_, linear_workspace_, as_cpu(head), input, {.out = logits});
}

}  // namespace slicellm::cpu

namespace slicellm {

std::shared_ptr<Device> make_cpu_device(const CpuOptions& options) {
  return std::make_shared<cpu::CpuDevice>(options);
}

}  // namespace slicellm
