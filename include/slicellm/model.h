#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "slicellm/batch.h"
#include "slicellm/format.h"
#include "slicellm/ops.h"

namespace slicellm {

// What the forward pass needs to know of a model: numbers and switches, no weights.
// Built from a Config by one file per family (src/model/family_*.cc).
struct ModelSpec {
  std::string family;  // "llama", "qwen2", "chatglm1", "chatglm2"
  int32_t layers = 0, hidden = 0, heads = 0, kv_heads = 0, head_dim = 0, inner = 0, vocab = 0;
  int32_t max_positions = 0;  // longest context the model was made for
  NormKind norm = NormKind::rms;
  float norm_eps = 1e-5f;
  GateActivation activation = GateActivation::silu_gate;
  RopeStyle rope_style = RopeStyle::half;
  int32_t rotary_dim = 0;
  float attention_scale = 0;      // usually 1/sqrt(head_dim)
  float residual_alpha = 1;       // ChatGLM-6B: sqrt(2 * layers)
  bool norm_is_residual = false;  // ChatGLM-6B: the normed input feeds the residual
  bool prefill_divisible = true;  // false where the prompt attends both ways
  int32_t sliding_window = 0;     // tokens a token sees, itself included; 0 = all
  int32_t window_from_layer = 0;  // layers below it see everything (Qwen2)
  bool tied_embeddings = false;
  std::vector<int32_t> eos_ids;
  int32_t bos_id = -1;
};

struct ModelOptions {
  DTypeSpec dtype;         // for Hugging Face input; ignored when `dtype_auto`
  bool dtype_auto = true;  // keep the file's dtypes (float16 for Hugging Face input)
  ActivationType activation = ActivationType::automatic;
  DType kv_dtype = DType::float16;
  // Packed weights are read from a file beside the model, "<model>.<instruction set>.pack", where
  // it fits model, options, layout and instruction set, and else written there. CPUs only.
  bool pack_cache = false;
  Progress progress;
};

// What became of ModelOptions::pack_cache.
struct PackCacheResult {
  enum class State { off, read, written, failed };  // failed: could not be written
  State state = State::off;
  std::string error;  // of a failure: one sentence
};

// Layers in a row on one device.
struct ModelPart {
  std::shared_ptr<Device> device;
  int32_t layers = 0;
};
// Where a model's layers are, first to last: the first part has the embedding too, the last one the
// head. Activations go from part to part through host memory, once a step.
using Placement = std::vector<ModelPart>;

// The places of a text:
//   "cpu", "numa", "cuda", "cuda:1"  everything on that device
//   "cuda:0=20,cpu=8"  the first 20 layers on the GPU, 8 on the CPU; in proportion, with at least
//                      one each, where the numbers do not add up to the model's layers. Parts of
//                      the same name share one device.
//   "auto"             the first GPU, where there is one; of a model that does not fit there the
//                      last layers, as many as do, and the rest on the CPU
// Throws Error(invalid_argument) for other texts and for more parts than layers, and what
// make_device throws; Error(unsupported) for GPU options where no place is a GPU.
Placement make_placement(std::string_view text, const ModelFile& file, const CpuOptions& cpu,
                         const GpuOptions& gpu, const ModelOptions& options);
// "AMD EPYC, avx2, 2 threads", or of several parts "20 layers on ...; 8 layers on ...".
std::string describe(const Placement& placement);

// Packed weights of one model on its devices. Immutable after load, shared by engines; `forward`
// uses a workspace, so one thread at a time.
class Model {
 public:
  // Throws Error(io | format | unsupported | resource). A pack cache that cannot be used or written
  // is no error, see pack_cache().
  static std::shared_ptr<Model> load(std::shared_ptr<const ModelFile> file, Placement placement,
                                     const ModelOptions& options);
  // All of it on one device.
  static std::shared_ptr<Model> load(const std::string& path, std::shared_ptr<Device> device,
                                     const ModelOptions& options);
  static std::shared_ptr<Model> load(std::shared_ptr<const ModelFile> file,
                                     std::shared_ptr<Device> device, const ModelOptions& options);
  virtual ~Model() = default;

  virtual const ModelSpec& spec() const = 0;
  virtual const ModelFile& file() const = 0;
  virtual const Placement& placement() const = 0;
  Device& device() const { return *placement().back().device; }  // where logits are computed
  virtual KvLayout kv_layout() const = 0;                        // of all layers
  virtual size_t weight_bytes() const = 0;
  size_t device_bytes() const;  // held of its GPUs' memory: weights, KV, workspaces
  virtual const PackCacheResult& pack_cache() const = 0;
  virtual std::string fingerprint() const = 0;  // model, dtypes, threads, CPU: keys calibrations

  // Blocks of kv_layout(), each part's layers on its device.
  virtual std::unique_ptr<KvStorage> allocate_kv(int32_t blocks) const = 0;
  // One step. Writes logits[rows.size(), vocab], in memory of device(), for the given flat token
  // indices; K and V go to `kv`, of allocate_kv(), through the batch's block tables. On a GPU the
  // step has only been started on return; Device::read waits for it. Throws Error(invalid_argument)
  // for a bad batch or too small a `logits`.
  // Once the first device has what the step needs (Device::begin_step), `run` is called with the
  // step's ops. It calls them, or does what they would: a model in one part has them launch kernels
  // and nothing else, which a GPU may have on record.
  using Ops = std::function<void()>;
  using RunOps = std::function<void(const Ops& ops)>;
  virtual void forward(
      const Batch& batch, KvStorage& kv, std::span<const int32_t> rows, Activation& logits,
      const RunOps& run = [](const Ops& ops) { ops(); }) = 0;
};

// The most that steps take on a device beside weights and KV; `most` gives tokens, sequences, rows
// and context, the rest is the model's.
size_t step_bytes(const ModelSpec& spec, StepBounds most, const Device& device);

// Family files: recognise a config, fill the spec, and say what the weights are called.
ModelSpec make_model_spec(const ModelFile& file);

}  // namespace slicellm
