#include <algorithm>
#include <bit>
#include <cstdio>
#include <mutex>
#include <utility>

#include "model/batch_check.h"
#include "model/family.h"
#include "model/pack_cache.h"
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

// FNV-1a: stable across builds and machines, which std::hash is not.
uint64_t hash_text(const std::string& text, uint64_t hash) {
  for (unsigned char c : text) hash = (hash ^ c) * 0x100000001b3;
  return hash;
}

// The forward pass of every family, written once against the device's coarse ops.
class TransformerModel final : public Model {
 public:
  TransformerModel(std::shared_ptr<const ModelFile> file, std::shared_ptr<Device> device,
                   const ModelOptions& options, PackCache* cache)
      : file_(std::move(file)), device_(std::move(device)), kv_dtype_(options.kv_dtype) {
    if (!device_->supports_kv(kv_dtype_)) {
      throw Error(ErrorKind::unsupported, "kv_cache_dtype",
                  to_string(kv_dtype_) + " on device " + device_->name(),
                  "float16 or int8, on a CPU also float32");
    }
    const ModelLayout layout = make_model_layout(*file_);
    spec_ = layout.spec;
    rope_ = layout.rope;
    make_rope(std::min(spec_.max_positions, kRopeRowsAtLoad));
    WeightLoader loader(*file_, *device_, options, layout, cache);
    embedding_ = loader.embedding(layout.embedding, spec_);
    for (const LayerSource& source : layout.layers) layers_.push_back(load_layer(loader, source));
    final_norm_ = loader.norm(layout.final_norm, spec_);
    head_ = loader.linear(layout.head, false);
    for (const PackedLinear* linear : linears()) weight_bytes_ += linear->bytes();
    inventory_ = loader.inventory();
    fingerprint_ = make_fingerprint(options);
    if (cache != nullptr) pack_cache_.state = PackCacheResult::State::read;
  }

  void write_cache(const std::string& path, const std::string& key) {
    try {
      write_pack_cache(path, key, inventory_, linears(), device_->threads());
      pack_cache_.state = PackCacheResult::State::written;
    } catch (const Error& e) {
      pack_cache_ = {PackCacheResult::State::failed, e.what()};
    }
  }

  const ModelSpec& spec() const override { return spec_; }
  const ModelFile& file() const override { return *file_; }
  Device& device() const override { return *device_; }
  size_t weight_bytes() const override { return weight_bytes_; }
  const PackCacheResult& pack_cache() const override { return pack_cache_; }
  std::string fingerprint() const override { return fingerprint_; }

  size_t step_bytes(int64_t tokens, int64_t rows) const override {
    // Activations are float32; a GPU has a copy of one linear's input and of all queries in 16
    // bits.
    const int64_t attended = attended_width();
    const int64_t widest = std::max({int64_t{spec_.hidden}, int64_t{spec_.inner}, attended});
    const int64_t floats = spec_.hidden + qkv_width() + attended + spec_.inner;
    return static_cast<size_t>(workspace_rows(tokens) * 4 * floats +
                               tokens * 2 * (widest + attended) +
                               workspace_rows(rows) * 4 * spec_.vocab);
  }

  KvLayout kv_layout() const override {
    KvLayout layout;
    layout.layers = spec_.layers;
    layout.kv_heads = spec_.kv_heads;
    layout.head_dim = spec_.head_dim;
    layout.dtype = kv_dtype_;
    return layout;
  }

  void forward(const Batch& batch, KvStorage& kv, std::span<const int32_t> rows,
               Activation& logits) override {
    const std::lock_guard lock(mutex_);
    check_batch(batch, spec_, kv_layout(), kv, rows);
    const int64_t floats = static_cast<int64_t>(rows.size()) * spec_.vocab;
    if (logits.capacity() < floats) {
      throw Error(ErrorKind::invalid_argument, "logits",
                  std::to_string(logits.capacity()) + " floats", std::to_string(floats));
    }
    const int64_t n = static_cast<int64_t>(batch.tokens.size());
    reserve(batch, n);
    AttentionArgs attention;
    attention.batch = &batch;
    attention.qkv = qkv_.get();
    attention.out = attended_.get();
    attention.kv = &kv;
    attention.heads = spec_.heads;
    attention.kv_heads = spec_.kv_heads;
    attention.head_dim = spec_.head_dim;
    attention.scale = spec_.attention_scale;
    attention.rope = packed_rope_.get();
    attention.bidirectional_prompt = !spec_.prefill_divisible;

    Device& device = *device_;
    const bool normed = spec_.norm_is_residual;
    const float alpha = spec_.residual_alpha;
    device.begin_step(batch);
    device.embed(batch.tokens, *embedding_, *x_);
    for (int32_t i = 0; i < spec_.layers; ++i) {
      const Layer& layer = layers_[i];
      device.norm_linear(*x_, n, *layer.attention_norm, *layer.qkv, normed, *qkv_);
      attention.layer = i;
      attention.sliding_window = i < spec_.window_from_layer ? 0 : spec_.sliding_window;
      device.rope_append_attend(attention);
      device.linear_add(*attended_, n, *layer.attention_out, alpha, *x_);
      device.norm_linear_act(*x_, n, *layer.mlp_norm, *layer.up, spec_.activation, normed, *inner_);
      device.linear_add(*inner_, n, *layer.down, alpha, *x_);
    }
    if (!rows.empty()) device.logits(*x_, rows, *final_norm_, *head_, logits);
  }

 private:
  Layer load_layer(WeightLoader& loader, const LayerSource& source) {
    Layer layer;
    layer.attention_norm = loader.norm(source.attention_norm, spec_);
    layer.qkv = loader.linear(source.qkv, false);
    layer.attention_out = loader.linear(source.attention_out, false);
    layer.mlp_norm = loader.norm(source.mlp_norm, spec_);
    layer.up = loader.linear(source.up, spec_.activation == GateActivation::silu_gate);
    layer.down = loader.linear(source.down, false);
    return layer;
  }

  // All of them, in the order of their packing.
  std::vector<const PackedLinear*> linears() const {
    std::vector<const PackedLinear*> all;
    for (const Layer& layer : layers_) {
      for (const auto* linear : {&layer.qkv, &layer.attention_out, &layer.up, &layer.down}) {
        all.push_back(linear->get());
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
                         device_->describe() + ";" + std::to_string(device_->threads()),
                     hash);
    char text[24];
    std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(hash));
    return spec_.family + "-" + text;
  }

  int64_t attended_width() const { return int64_t{spec_.heads} * spec_.head_dim; }
  int64_t qkv_width() const {
    return attended_width() + 2 * int64_t{spec_.kv_heads} * spec_.head_dim;
  }
  static int64_t workspace_rows(int64_t n) {
    return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(n)));
  }

  // Grows the workspace and the rotary tables to what the batch needs; usually does nothing.
  void reserve(const Batch& batch, int64_t n) {
    if (n > capacity_) {
      const int64_t rows = workspace_rows(n);
      capacity_ = 0;
      x_ = device_->allocate(rows * spec_.hidden);
      qkv_ = device_->allocate(rows * qkv_width());
      attended_ = device_->allocate(rows * attended_width());
      inner_ = device_->allocate(rows * spec_.inner);
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
    packed_rope_ = device_->pack_rope(table);
    rope_table_ = std::move(table);
  }

  std::shared_ptr<const ModelFile> file_;
  std::shared_ptr<Device> device_;
  DType kv_dtype_;
  ModelSpec spec_;
  RopeParameters rope_;
  std::shared_ptr<const RopeTable> rope_table_;
  std::unique_ptr<PackedRope> packed_rope_;
  std::unique_ptr<EmbeddingTable> embedding_;
  std::vector<Layer> layers_;
  std::unique_ptr<PackedNorm> final_norm_;
  std::unique_ptr<PackedLinear> head_;
  size_t weight_bytes_ = 0;
  std::string inventory_;  // see WeightLoader
  PackCacheResult pack_cache_;
  std::string fingerprint_;

  std::mutex mutex_;      // of the workspace, the rotary tables and the device's ops
  int64_t capacity_ = 0;  // rows of the workspace
  std::unique_ptr<Activation> x_, qkv_, attended_, inner_;
};

}  // namespace

std::shared_ptr<Model> Model::load(const std::string& path, std::shared_ptr<Device> device,
                                   const ModelOptions& options) {
  return load(open_model_file(path), std::move(device), options);
}

std::shared_ptr<Model> Model::load(std::shared_ptr<const ModelFile> file,
                                   std::shared_ptr<Device> device, const ModelOptions& options) {
  if (!options.pack_cache) {
    return std::make_shared<TransformerModel>(std::move(file), std::move(device), options, nullptr);
  }
  if (device->packed_form().empty()) {
    throw Error(ErrorKind::unsupported, "pack_cache", "device " + device->name(), "a CPU");
  }
  const std::string path = pack_cache_path(*file, *device);
  const std::string key = pack_cache_key(*file, *device, options);
  try {
    PackCache cache(path, key);
    return std::make_shared<TransformerModel>(file, device, options, &cache);
  } catch (const Error&) {
    // None, another model's or a damaged one. What else may be wrong shows below again.
  }
  auto model = std::make_shared<TransformerModel>(file, device, options, nullptr);
  model->write_cache(path, key);
  return model;
}

}  // namespace slicellm
