#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "slicellm/batch.h"
#include "slicellm/dtype.h"
#include "slicellm/kv_cache.h"
#include "slicellm/tensor.h"

// The coarse operations of a forward pass. The model (src/model) is written once against this
// header; each device (src/cpu, src/cuda) implements it and may fuse inside an op. Ops of a device
// run in the order of their calls; a GPU's return before they are done.
//
// Activations are float32 matrices [tokens, width] in device memory. The order of every reduction
// depends on the row alone, never on the batch, the chunking or the thread count, so a task's
// results are bit-equal however it is scheduled.
namespace slicellm {

// How quantised weights meet activations.
enum class ActivationType {
  automatic,  // on a CPU int8 for int8/int4 weights, else what the device has
  float32,    // weights decoded to float32, activations untouched
  int8,       // activations quantised per token and group, integer dot products
};
ActivationType parse_activation_type(std::string_view text);  // "auto", "float32", "int8"

// A packed linear as a file keeps it (src/model/pack_cache.h).
struct PackedImage {
  std::string about;                  // all that Device::restore needs besides the panels
  std::span<const std::byte> panels;  // as they lie in memory
};

// A linear layer in a device's own layout: y[n, out] = x[n, in] * W^T + bias.
class PackedLinear {
 public:
  virtual ~PackedLinear() = default;
  virtual int64_t in_features() const = 0;
  virtual int64_t out_features() const = 0;
  virtual size_t bytes() const = 0;                 // bytes read per use (weights + scales)
  virtual PackedImage image() const { return {}; }  // where Device::packed_form() is not empty
};

// Rows of an embedding table, read in place from the model file's mapping or from device memory.
class EmbeddingTable {
 public:
  virtual ~EmbeddingTable() = default;
  virtual int64_t rows() const = 0;
  virtual int64_t cols() const = 0;
};

// Device memory for activations, [rows, cols] float32. Allocated once per model instance.
class Activation {
 public:
  virtual ~Activation() = default;
  virtual float* data() = 0;             // device pointer
  virtual int64_t capacity() const = 0;  // floats
};

enum class NormKind { rms, layer };  // layer has a bias
struct NormWeights {
  NormKind kind = NormKind::rms;
  float eps = 1e-5f;
  std::vector<float> weight;  // [width]
  std::vector<float> bias;    // [width] for layer, empty for rms
};

// A norm's weights where the device reads them.
class PackedNorm {
 public:
  virtual ~PackedNorm() = default;
  virtual int64_t width() const = 0;
};

enum class GateActivation {
  silu_gate,  // silu(gate) * up; the linear's rows are gate then up
  gelu_tanh,  // gelu(up), tanh form; no gate
};

enum class RopeStyle {
  half,         // pairs (i, i + rotary_dim/2): Llama, Qwen
  interleaved,  // pairs (2i, 2i+1): ChatGLM2/3
  glm_2d,       // ChatGLM-6B: first half of the head by position, second half by block position,
                // each half-split
};

// Cosines and sines per position are precomputed by the model for all variants (linear, dynamic,
// llama3, yarn): the op only applies them.
struct RopeTable {
  RopeStyle style = RopeStyle::half;
  int32_t rotary_dim = 0;       // rotated part of the head (per half for glm_2d)
  int32_t positions = 0;        // rows of the tables
  std::vector<float> cos, sin;  // [positions, rotary_dim/2]
};

// A rotary table where the device reads it.
class PackedRope {
 public:
  virtual ~PackedRope() = default;
};

// What the work of a layer's attention depends on besides the batch.
struct AttentionShape {
  int32_t heads = 0, kv_heads = 0, head_dim = 0;
  RopeStyle rope_style = RopeStyle::half;
  int32_t sliding_window = 0;         // 0 = none (Mistral)
  bool bidirectional_prompt = false;  // ChatGLM-6B: prompt tokens but the last see each other

  bool operator==(const AttentionShape&) const = default;
};

struct AttentionArgs {
  const Batch* batch = nullptr;  // the step's
  Activation* qkv = nullptr;     // [n, (heads + 2*kv_heads) * head_dim]: q heads, then k, then v
  Activation* out = nullptr;     // [n, heads * head_dim]
  KvStorage* kv = nullptr;
  int32_t layer = 0;
  AttentionShape shape;  // one of the step's
  float scale = 0;       // multiplies q.k
  const PackedRope* rope = nullptr;
};

// Bounds of a model's steps.
struct StepBounds {
  int64_t tokens = 0, sequences = 0, rows = 0;  // of a step; rows of logits
  int64_t context = 0;                          // tokens of a sequence
  int32_t heads = 0, kv_heads = 0, head_dim = 0;
  int32_t attention_shapes = 0;   // that the layers have
  int64_t widest = 0, vocab = 0;  // inputs of the widest linear, outputs of the head
};

// A device. Ops of one Device are called from one thread at a time.
class Device {
 public:
  virtual ~Device() = default;
  virtual std::string name() const = 0;      // "cpu"
  virtual std::string describe() const = 0;  // "AMD EPYC, avx2, 2 threads"
  virtual int threads() const = 0;

  // Packs matrices stacked by rows (all of one dtype, group size and width) with their biases
  // (empty, or one per matrix; a matrix without bias has an empty one). Parallel. `gated` says that
  // the first half of all rows is the gate and the second half the up projection of a gated
  // activation: such a linear serves norm_linear_act with silu_gate, and nothing else.
  // Throws Error(unsupported) for shapes that do not fit together, Error(resource).
  virtual std::unique_ptr<PackedLinear> pack(std::span<const Weight> matrices,
                                             std::span<const std::vector<float>> biases,
                                             ActivationType activation, bool gated) = 0;
  // Names layout, its version and instruction set of what pack() makes; empty where a device cannot
  // restore it.
  virtual std::string packed_form() const { return {}; }
  // Makes a packed linear from its image again; `gated` as it was packed, `read` fills the panels
  // and throws if it cannot. Throws Error(format) for an image that is not of this device's form.
  using ReadPanels = std::function<void(std::span<std::byte>)>;
  virtual std::unique_ptr<PackedLinear> restore(const std::string& about, size_t panel_bytes,
                                                bool gated, const ReadPanels& read);
  virtual std::unique_ptr<PackedNorm> pack_norm(const NormWeights& norm) = 0;
  virtual std::unique_ptr<PackedRope> pack_rope(std::shared_ptr<const RopeTable> table) = 0;
  virtual std::unique_ptr<EmbeddingTable> embedding(const Weight& table) = 0;
  // All weights have been packed: waits for their upload and frees what it took on the way.
  virtual void finish_loading() {}
  virtual std::unique_ptr<Activation> allocate(int64_t floats) = 0;
  virtual std::unique_ptr<KvStorage> allocate_kv(const KvLayout& layout, int32_t blocks) = 0;
  virtual bool supports_kv(DType dtype) const = 0;  // as the type of KvLayout
  virtual size_t free_memory() const = 0;           // bytes that may still be allocated for KV
  virtual size_t held_bytes() const { return 0; }   // of a GPU's memory: weights, KV, workspaces
  // The most that ops and the drawing of tokens take beside activations for steps within bounds.
  virtual size_t workspace_bytes(const StepBounds&) const { return 0; }
  // What free_memory() follows from, for messages.
  virtual std::string describe_memory() const = 0;
  virtual bool shares_host_memory() const = 0;  // KV pools on the device and host are one memory

  // Copies from the first float on between host memory and an activation, after the ops called so
  // far; done on return. The host has no other way to a GPU's activations.
  virtual void read(const Activation& from, std::span<float> to) = 0;
  virtual void write(std::span<const float> from, Activation& to) = 0;

  // Starts a step with all that its ops need from the host: a GPU uploads it and makes room for
  // what the ops compute, so that they only launch kernels. `rows` are those of logits, `attention`
  // the shapes of the layers, each once. `batch` stays as it is until the step's last op.
  virtual void begin_step(const Batch& batch, std::span<const int32_t> rows,
                          std::span<const AttentionShape> attention) = 0;
  // x[n, width] = table[tokens]; the tokens of the step's batch.
  virtual void embed(std::span<const int32_t> tokens, const EmbeddingTable& table,
                     Activation& x) = 0;
  // out[n, linear.out] = linear(norm(x)); with `normed_into_x`, x becomes norm(x) (ChatGLM-6B).
  virtual void norm_linear(Activation& x, int64_t n, const PackedNorm& norm,
                           const PackedLinear& linear, bool normed_into_x, Activation& out) = 0;
  // Rotates q and k, appends k and v to the cache, attends.
  virtual void rope_append_attend(const AttentionArgs& args) = 0;
  // x[n, linear.out] = alpha * x + linear(in)
  virtual void linear_add(const Activation& in, int64_t n, const PackedLinear& linear, float alpha,
                          Activation& x) = 0;
  // out[n, inner] = act(linear(norm(x)))
  virtual void norm_linear_act(Activation& x, int64_t n, const PackedNorm& norm,
                               const PackedLinear& linear, GateActivation act, bool normed_into_x,
                               Activation& out) = 0;
  // logits[rows.size(), vocab] = head(norm(x[rows])); the step's rows.
  virtual void logits(const Activation& x, std::span<const int32_t> rows, const PackedNorm& norm,
                      const PackedLinear& head, Activation& logits) = 0;
};

struct CpuOptions {
  int threads = 0;  // 0 = number of usable cores
  // "" = best of the CPU, or one of "portable", "avx2", "avx512", "neon", "dotprod", "i8mm".
  std::string isa;
};
// Throws Error(invalid_argument) for an isa that is unknown or that this CPU lacks, and for a
// thread count outside 0..1024.
std::shared_ptr<Device> make_cpu_device(const CpuOptions& options);
// The same, its weights and threads divided over the machine's NUMA nodes; `threads` are those of
// all nodes. Also throws Error(invalid_argument) for fewer threads than nodes and for wrong values
// in the environment (src/cpu/numa.h).
std::shared_ptr<Device> make_numa_device(const CpuOptions& options);

struct GpuOptions {
  // Share of the GPU's memory that may be in use, by whatever, once KV has been allocated; 0.9
  // where it is not given.
  std::optional<double> mem_ratio;
  // Most bytes of the GPU's memory that the device holds at any time, beside what CUDA itself takes
  // for its context; 0 = what there is. What does not fit throws Error(resource).
  size_t vram_limit = 0;
};
// The GPU of this index (CUDA's numbering). Quantised weights always meet 16-bit activations there,
// whatever ActivationType says. Throws Error(unsupported) in a build without CUDA, without a driver
// or such a GPU, and for one below compute capability 8.0;
// Error(invalid_argument) for a share outside (0, 1].
std::shared_ptr<Device> make_cuda_device(int index, const GpuOptions& options = {});

// "cpu", "numa", "cuda" or "cuda:<index>"; `cpu` holds for a CPU alone, `gpu` for a GPU. Throws
// Error(invalid_argument).
std::shared_ptr<Device> make_device(std::string_view name, const CpuOptions& cpu,
                                    const GpuOptions& gpu = {});

}  // namespace slicellm
