#include <algorithm>
#include <bit>
#include <cstdio>
#include <mutex>
#include <set>
#include <utility>

#include "model/batch_check.h"
#include "model/family.h"
#include "model/pack_cache.h"
#include "model/split_kv.h"
#include "model/weights.h"
#include "slicellm/error.h"
#include "slicellm/model.h"

namespace slicellm {
namespace {

// Rows of rotary tables made at load; longer contexts extend them step by step, so that a model
// made for a million positions does not pay for them.
constexpr int32_t kRopeRowsAtLoad = 8192;
constexpr int32_t kRopeRowsAtOnce = 1024;

struct Layer {
  std::unique_ptr<PackedNorm> attention_norm, mlp_norm;
  std::unique_ptr<PackedLinear> qkv, attention_out, up, down;
};

// A part of the model, with the workspace of its steps.
struct Stage {
  Device* device = nullptr;
  int32_t begin = 0;  // its first layer
  std::vector<Layer> layers;
  std::unique_ptr<PackedRope> rope;
  std::unique_ptr<Activation> x, qkv, attended, inner;
};

int64_t attended_width(const ModelSpec& spec) { return int64_t{spec.heads} * spec.head_dim; }
int64_t qkv_width(const ModelSpec& spec) {
  return attended_width(spec) + 2 * int64_t{spec.kv_heads} * spec.head_dim;
}
int64_t workspace_rows(int64_t n) {
  return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(n)));
}

// FNV-1a: stable across builds and machines, which std::hash is not.
uint64_t hash_text(const std::string& text, uint64_t hash) {
  for (unsigned char c : text) hash = (hash ^ c) * 0x100000001b3;
  return hash;
}

// The forward pass of every family, written once against the device's coarse ops.
class TransformerModel final : public Model {
 public:
  TransformerModel(std::shared_ptr<const ModelFile> file, Placement placement,
                   const ModelOptions& options, PackCache* cache)
      : file_(std::move(file)), placement_(std::move(placement)), kv_dtype_(options.kv_dtype) {
    for (const ModelPart& part : placement_) {
      if (part.device->supports_kv(kv_dtype_)) continue;
      throw Error(ErrorKind::unsupported, "kv_cache_dtype",
                  to_string(kv_dtype_) + " on device " + part.device->name(),
                  "float16 or int8, on a CPU also float32");
    }
    const ModelLayout layout = make_model_layout(*file_);
    spec_ = layout.spec;
    rope_ = layout.rope;
    int32_t layers = 0;
    for (const ModelPart& part : placement_) layers += part.layers;
    if (layers != spec_.layers) {
      throw Error(ErrorKind::invalid_argument, "placement", std::to_string(layers) + " layers",
                  "the model's " + std::to_string(spec_.layers));
    }
    WeightLoader loader(*file_, options, layout, cache);
    embedding_ = loader.embedding(*placement_.front().device, layout.embedding, spec_);
    auto source = layout.layers.begin();
    for (const ModelPart& part : placement_) {
      Stage& stage = stages_.emplace_back();
      stage.device = part.device.get();
      stage.begin = static_cast<int32_t>(source - layout.layers.begin());
      for (int32_t i = 0; i < part.layers; ++i) {
        stage.layers.push_back(load_layer(loader, *stage.device, *source++));
      }
    }
    make_rope(std::min(spec_.max_positions, kRopeRowsAtLoad));
    final_norm_ = loader.norm(device(), layout.final_norm, spec_);
    head_ = loader.linear(device(), layout.head, false);
    for (const PackedLinear* linear : linears()) weight_bytes_ += linear->bytes();
    for (Stage& stage : stages_) stage.device->finish_loading();
    inventory_ = loader.inventory();
    fingerprint_ = make_fingerprint(options);
    if (cache != nullptr) pack_cache_.state = PackCacheResult::State::read;
  }

  void write_cache(const std::string& path, const std::string& key) {
    try {
      write_pack_cache(path, key, inventory_, linears(), device().threads());
      pack_cache_.state = PackCacheResult::State::written;
    } catch (const Error& e) {
      pack_cache_ = {PackCacheResult::State::failed, e.what()};
    }
  }

  const ModelSpec& spec() const override { return spec_; }
  const ModelFile& file() const override { return *file_; }
  const Placement& placement() const override { return placement_; }
  size_t weight_bytes() const override { return weight_bytes_; }
  const PackCacheResult& pack_cache() const override { return pack_cache_; }
  std::string fingerprint() const override { return fingerprint_; }

  KvLayout kv_layout() const override { return kv_layout(spec_.layers); }

  std::unique_ptr<KvStorage> allocate_kv(int32_t blocks) const override {
    if (placement_.size() == 1) return device().allocate_kv(kv_layout(), blocks);
    std::vector<std::unique_ptr<KvStorage>> parts;
    for (const ModelPart& part : placement_) {
      parts.push_back(part.device->allocate_kv(kv_layout(part.layers), blocks));
    }
    return std::make_unique<SplitKvStorage>(kv_layout(), std::move(parts));
  }

  void forward(const Batch& batch, KvStorage& kv, std::span<const int32_t> rows, Activation& logits,
               const RunOps& run) override {
    const std::lock_guard lock(mutex_);
    check_batch(batch, spec_, kv_layout(), kv, rows);
    const int64_t floats = static_cast<int64_t>(rows.size()) * spec_.vocab;
    if (logits.capacity() < floats) {
      throw Error(ErrorKind::invalid_argument, "logits",
                  std::to_string(logits.capacity()) + " floats", std::to_string(floats));
    }
    reserve(batch);
    begin_step(stages_.front(), batch, rows);
    run([&] {
      stages_.front().device->embed(batch.tokens, *embedding_, *stages_.front().x);
      for (size_t i = 0; i < stages_.size(); ++i) {
        Stage& stage = stages_[i];
        if (i > 0) {
          hand_over(stages_[i - 1], stage, batch.tokens.size());
          begin_step(stage, batch, rows);
        }
        run_layers(stage, batch, part_of(kv, i));
      }
      if (!rows.empty()) device().logits(*stages_.back().x, rows, *final_norm_, *head_, logits);
    });
  }

 private:
  void begin_step(const Stage& stage, const Batch& batch, std::span<const int32_t> rows) const {
    std::vector<AttentionShape> shapes;
    for (size_t i = 0; i < stage.layers.size(); ++i) {
      const AttentionShape shape = attention_shape(stage.begin + static_cast<int32_t>(i));
      if (!std::ranges::count(shapes, shape)) shapes.push_back(shape);
    }
    stage.device->begin_step(batch, rows, shapes);
  }

  void run_layers(Stage& stage, const Batch& batch, KvStorage& kv) {
    AttentionArgs attention;
    attention.batch = &batch;
    attention.qkv = stage.qkv.get();
    attention.out = stage.attended.get();
    attention.kv = &kv;
    attention.scale = spec_.attention_scale;
    attention.rope = stage.rope.get();

    Device& device = *stage.device;
    Activation& x = *stage.x;
    const auto n = static_cast<int64_t>(batch.tokens.size());
    const bool normed = spec_.norm_is_residual;
    const float alpha = spec_.residual_alpha;
    for (attention.layer = 0; const Layer& layer : stage.layers) {
      device.norm_linear(x, n, *layer.attention_norm, *layer.qkv, normed, *stage.qkv);
      attention.shape = attention_shape(stage.begin + attention.layer);
      device.rope_append_attend(attention);
      device.linear_add(*stage.attended, n, *layer.attention_out, alpha, x);
      device.norm_linear_act(x, n, *layer.mlp_norm, *layer.up, spec_.activation, normed,
                             *stage.inner);
      device.linear_add(*stage.inner, n, *layer.down, alpha, x);
      ++attention.layer;
    }
  }

  // K and V of a stage's layers.
  KvStorage& part_of(KvStorage& kv, size_t stage) const {
    KvStorage* part = &kv;
    if (auto* split = dynamic_cast<SplitKvStorage*>(&kv)) part = split->part(stage);
    if (part == nullptr ||
        part->layout().layers != static_cast<int32_t>(stages_[stage].layers.size())) {
      throw Error(ErrorKind::invalid_argument, "kv", "other parts than the model's",
                  "what its allocate_kv makes");
    }
    return *part;
  }

  // The activations of n tokens to the next part, through host memory.
  void hand_over(const Stage& from, Stage& to, size_t n) {
    handed_over_.resize(n * static_cast<size_t>(spec_.hidden));
    from.device->read(*from.x, handed_over_);
    to.device->write(handed_over_, *to.x);
  }

  Layer load_layer(WeightLoader& loader, Device& device, const LayerSource& source) {
    Layer layer;
    layer.attention_norm = loader.norm(device, source.attention_norm, spec_);
    layer.qkv = loader.linear(device, source.qkv, false);
    layer.attention_out = loader.linear(device, source.attention_out, false);
    layer.mlp_norm = loader.norm(device, source.mlp_norm, spec_);
    layer.up = loader.linear(device, source.up, spec_.activation == GateActivation::silu_gate);
    layer.down = loader.linear(device, source.down, false);
    return layer;
  }

  // All of them, in the order of their packing.
  std::vector<const PackedLinear*> linears() const {
    std::vector<const PackedLinear*> all;
    for (const Stage& stage : stages_) {
      for (const Layer& layer : stage.layers) {
        for (const auto* linear : {&layer.qkv, &layer.attention_out, &layer.up, &layer.down}) {
          all.push_back(linear->get());
        }
      }
    }
    all.push_back(head_.get());
    return all;
  }

  std::string make_fingerprint(const ModelOptions& options) const {
    uint64_t hash = hash_text(inventory_, 0xcbf29ce484222325);
    for (const auto& [key, value] : file_->config().values) {
      hash = hash_text(key + "=" + value + ";", hash);
    }
    hash = hash_text(to_string(kv_dtype_) + ";" +
                         std::to_string(static_cast<int>(options.activation)) + ";" +
                         describe(placement_) + ";" + std::to_string(device().threads()),
                     hash);
    char text[24];
    std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(hash));
    return spec_.family + "-" + text;
  }

  KvLayout kv_layout(int32_t layers) const {
    return {.layers = layers,
            .kv_heads = spec_.kv_heads,
            .head_dim = spec_.head_dim,
            .dtype = kv_dtype_};
  }

  AttentionShape attention_shape(int32_t layer) const {
    return {.heads = spec_.heads,
            .kv_heads = spec_.kv_heads,
            .head_dim = spec_.head_dim,
            .rope_style = spec_.rope_style,
            .sliding_window = layer < spec_.window_from_layer ? 0 : spec_.sliding_window,
            .bidirectional_prompt = !spec_.prefill_divisible};
  }

  // Grows the workspace and the rotary tables to what the batch needs; usually does nothing.
  void reserve(const Batch& batch) {
    const auto n = static_cast<int64_t>(batch.tokens.size());
    if (n > capacity_) {
      const int64_t rows = workspace_rows(n);
      capacity_ = 0;
      for (Stage& stage : stages_) {
        for (auto* old : {&stage.x, &stage.qkv, &stage.attended, &stage.inner}) {
          old->reset();  // both need not fit
        }
        stage.x = stage.device->allocate(rows * spec_.hidden);
        stage.qkv = stage.device->allocate(rows * qkv_width(spec_));
        stage.attended = stage.device->allocate(rows * attended_width(spec_));
        stage.inner = stage.device->allocate(rows * spec_.inner);
      }
      capacity_ = rows;
    }
    int32_t positions = 0;
    for (const BatchSequence& sequence : batch.sequences) {
      positions = std::max(positions, sequence.past + sequence.count);
    }
    if (positions > rope_table_->positions) {
      const int32_t spare = std::min(spec_.max_positions - positions, kRopeRowsAtOnce);
      make_rope(positions + spare);
    }
  }

  void make_rope(int32_t positions) {
    auto table = std::make_shared<RopeTable>(rope_table_ ? *rope_table_ : RopeTable{});
    extend_rope_table(rope_, positions, *table);
    for (Stage& stage : stages_) stage.rope = stage.device->pack_rope(table);
    rope_table_ = std::move(table);
  }

  std::shared_ptr<const ModelFile> file_;
  Placement placement_;
  DType kv_dtype_;
  ModelSpec spec_;
  RopeParameters rope_;
  std::shared_ptr<const RopeTable> rope_table_;
  std::unique_ptr<EmbeddingTable> embedding_;
  std::vector<Stage> stages_;
  std::unique_ptr<PackedNorm> final_norm_;
  std::unique_ptr<PackedLinear> head_;
  size_t weight_bytes_ = 0;
  std::string inventory_;  // see WeightLoader
  PackCacheResult pack_cache_;
  std::string fingerprint_;

  std::mutex mutex_;      // of the workspace, the rotary tables and the devices' ops
  int64_t capacity_ = 0;  // rows of the workspace
  std::vector<float> handed_over_;
};

}  // namespace

size_t Model::device_bytes() const {
  std::set<const Device*> devices;
  for (const ModelPart& part : placement()) devices.insert(part.device.get());
  size_t bytes = 0;
  for (const Device* device : devices) bytes += device->held_bytes();
  return bytes;
}

size_t step_bytes(const ModelSpec& spec, StepBounds most, const Device& device) {
  const int64_t attended = attended_width(spec);
  most.heads = spec.heads;
  most.kv_heads = spec.kv_heads;
  most.head_dim = spec.head_dim;
  most.attention_shapes = spec.window_from_layer > 0 ? 2 : 1;
  most.widest = std::max({int64_t{spec.hidden}, int64_t{spec.inner}, attended});
  most.vocab = spec.vocab;
  const int64_t floats = spec.hidden + qkv_width(spec) + attended + spec.inner;
  // Rotary tables that are extended, beside those before.
  const int64_t rope = most.context > kRopeRowsAtLoad ? 8 * most.context * spec.rotary_dim : 0;
  return static_cast<size_t>(workspace_rows(most.tokens) * 4 * floats +
                             workspace_rows(most.rows) * 4 * spec.vocab + rope) +
         device.workspace_bytes(most);
}

std::shared_ptr<Model> Model::load(const std::string& path, std::shared_ptr<Device> device,
                                   const ModelOptions& options) {
  return load(open_model_file(path), std::move(device), options);
}

std::shared_ptr<Model> Model::load(std::shared_ptr<const ModelFile> file,
                                   std::shared_ptr<Device> device, const ModelOptions& options) {
  const int32_t layers = make_model_spec(*file).layers;
  return load(std::move(file), Placement{{std::move(device), layers}}, options);
}

std::shared_ptr<Model> Model::load(std::shared_ptr<const ModelFile> file, Placement placement,
                                   const ModelOptions& options) {
  if (!options.pack_cache) {
    return std::make_shared<TransformerModel>(std::move(file), std::move(placement), options,
                                              nullptr);
  }
  for (const ModelPart& part : placement) {
    if (!part.device->packed_form().empty()) continue;
    throw Error(ErrorKind::unsupported, "pack_cache", "device " + part.device->name(), "a CPU");
  }
  const Device& device = *placement.front().device;
  const std::string path = pack_cache_path(*file, device);
  const std::string key = pack_cache_key(*file, device, options);
  try {
    PackCache cache(path, key);
    return std::make_shared<TransformerModel>(file, placement, options, &cache);
  } catch (const Error&) {
    // None, another model's or a damaged one. What else may be wrong shows below again.
  }
  auto model = std::make_shared<TransformerModel>(file, std::move(placement), options, nullptr);
  model->write_cache(path, key);
  return model;
}

}  // namespace slicellm
