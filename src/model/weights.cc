#include "model/weights.h"

#include <algorithm>
#include <array>
#include <memory>

#include "format/stack_rows.h"
#include "slicellm/error.h"

namespace slicellm {
namespace {

std::string shape_text(std::span<const int64_t> shape) {
  std::string out = "shape [";
  for (size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) out += ", ";
    out += std::to_string(shape[i]);
  }
  return out + "]";
}

void check_shape(const Weight& w, std::span<const int64_t> expected) {
  if (std::ranges::equal(w.shape, expected)) return;
  throw Error(ErrorKind::format, w.name, shape_text(w.shape), shape_text(expected));
}

DTypeSpec dtype_of(const Weight& w) {
  const bool grouped = is_quantized(w.dtype) && w.groups() > 1;
  return {w.dtype, grouped ? w.group_size : 0};
}

// The parts of rows that lie [head][q, k, v][head_dim], as q of all heads, then k, then v.
std::vector<RowRange> separate_qkv(Weight interleaved, int32_t heads) {
  const int64_t head_dim = interleaved.shape[0] / heads / 3;
  const auto whole = std::make_shared<const Weight>(std::move(interleaved));
  std::vector<RowRange> parts;
  for (int64_t part = 0; part < 3; ++part) {
    for (int64_t head = 0; head < heads; ++head) {
      const int64_t begin = (head * 3 + part) * head_dim;
      parts.push_back({whole, begin, begin + head_dim});
    }
  }
  return parts;
}

// Bytes of the file that the layout's tensors take, as far as shapes tell without reading them.
uint64_t tensor_bytes(const ModelFile& file, const std::string& name) {
  return file.contains(name) ? file.weight(name).data_bytes : 0;
}

uint64_t linear_bytes(const ModelFile& file, const LinearSource& source) {
  uint64_t bytes = 0;
  for (const LinearSource::Part& part : source.parts) {
    bytes += tensor_bytes(file, part.name + ".weight");
  }
  return bytes;
}

}  // namespace

uint64_t device_bytes(const ModelFile& file, const LinearSource& source,
                      const ModelOptions& options) {
  uint64_t bytes = 0;
  for (const LinearSource::Part& part : source.parts) {
    const std::string name = part.name + ".weight";
    if (!file.contains(name)) continue;
    const Weight w = file.weight(name);
    DTypeSpec dtype = dtype_of(w);
    if (file.kind() == ModelFileKind::hf_dir && !is_quantized(w.dtype)) {
      dtype = options.dtype_auto ? DTypeSpec{} : options.dtype;
    }
    const auto size = static_cast<uint64_t>(part.rows * source.cols);
    const auto group = static_cast<uint64_t>(dtype.group_size > 0 ? dtype.group_size : source.cols);
    bytes += size * static_cast<uint64_t>(dtype_bits(dtype.type)) / 8;
    if (is_quantized(dtype.type)) bytes += size / group * 2 * sizeof(float);
  }
  return bytes;
}

uint64_t device_bytes(const ModelFile& file, const std::string& embedding) {
  return tensor_bytes(file, embedding + ".weight");
}

WeightLoader::WeightLoader(const ModelFile& file, const ModelOptions& options,
                           const ModelLayout& layout, PackCache* cache)
    : file_(file), options_(options), cache_(cache) {
  if (!options.progress) return;
  if (cache != nullptr) {
    total_ = cache->bytes();
    return;
  }
  total_ = tensor_bytes(file, layout.embedding + ".weight") + linear_bytes(file, layout.head);
  for (const LayerSource& layer : layout.layers) {
    for (const LinearSource* source : {&layer.qkv, &layer.attention_out, &layer.up, &layer.down}) {
      total_ += linear_bytes(file, *source);
    }
  }
}

Weight WeightLoader::matrix(const std::string& name, int64_t rows, int64_t cols) {
  Weight w = file_.weight(name + ".weight");
  check_shape(w, std::array{rows, cols});
  return w;
}

std::vector<float> WeightLoader::vector(const std::string& name, int64_t size) {
  const Weight w = file_.weight(name);
  check_shape(w, std::array{size});
  std::vector<float> values(size);
  decode(w, 0, size, values.data());
  release_rows(w, 0, 1);
  return values;
}

void WeightLoader::note(const Weight& w) {
  inventory_ += w.name + " " + to_string(dtype_of(w)) + " " + shape_text(w.shape) + ";";
}

void WeightLoader::advance(uint64_t bytes) {
  if (!options_.progress) return;
  done_ += bytes;
  options_.progress(std::min(done_, total_), total_);
}

std::unique_ptr<PackedLinear> WeightLoader::cached_linear(Device& device,
                                                          const LinearSource& source, bool gated) {
  std::unique_ptr<PackedLinear> linear = cache_->next(device, gated);
  int64_t rows = 0;
  for (const LinearSource::Part& part : source.parts) rows += part.rows;
  if (linear->in_features() != source.cols || linear->out_features() != rows) {
    throw Error(ErrorKind::format, "pack cache",
                shape_text(std::array{linear->out_features(), linear->in_features()}),
                shape_text(std::array{rows, int64_t{source.cols}}));
  }
  advance(linear->bytes());
  return linear;
}

std::unique_ptr<PackedLinear> WeightLoader::linear(Device& device, const LinearSource& source,
                                                   bool gated) {
  if (cache_ != nullptr) return cached_linear(device, source, gated);
  std::optional<DTypeSpec> target;
  if (file_.kind() == ModelFileKind::hf_dir) {
    target = options_.dtype_auto ? DTypeSpec{} : options_.dtype;
  } else if (source.tied) {
    target = linear_dtype_;
  }
  std::vector<Weight> stack;
  std::vector<std::vector<float>> biases;
  uint64_t bytes = 0;
  for (const LinearSource::Part& part : source.parts) {
    Weight w = matrix(part.name, part.rows, source.cols);
    bytes += w.data_bytes;
    std::vector<float> bias;
    const std::string bias_name = part.name + ".bias";
    if (source.bias == Bias::required || file_.contains(bias_name)) {
      bias = vector(bias_name, part.rows);
    }
    if (source.interleaved_heads > 0) {
      const std::vector<RowRange> rows = separate_qkv(w, source.interleaved_heads);
      w = stack_rows(w.name, rows);
      std::vector<float> separate;
      for (const RowRange& r : rows) {
        if (bias.empty()) break;
        separate.insert(separate.end(), bias.begin() + r.begin, bias.begin() + r.end);
      }
      bias = std::move(separate);
    }
    if (target && !is_quantized(w.dtype)) w = convert(w, *target, device.threads());
    note(w);
    stack.push_back(std::move(w));
    biases.push_back(std::move(bias));
  }
  for (const Weight& w : stack) {
    if (dtype_of(w) == dtype_of(stack.front())) continue;
    throw Error(ErrorKind::unsupported, w.name, to_string(dtype_of(w)),
                to_string(dtype_of(stack.front())) + ", the dtype of " + stack.front().name +
                    " with which it is computed");
  }
  if (!linear_dtype_) linear_dtype_ = dtype_of(stack.front());
  std::unique_ptr<PackedLinear> packed = device.pack(stack, biases, options_.activation, gated);
  advance(bytes);
  return packed;
}

std::unique_ptr<PackedNorm> WeightLoader::norm(Device& device, const std::string& name,
                                               const ModelSpec& spec) {
  NormWeights norm{spec.norm, spec.norm_eps, vector(name + ".weight", spec.hidden), {}};
  if (spec.norm == NormKind::layer) norm.bias = vector(name + ".bias", spec.hidden);
  return device.pack_norm(norm);
}

std::unique_ptr<EmbeddingTable> WeightLoader::embedding(Device& device, const std::string& name,
                                                        const ModelSpec& spec) {
  const Weight w = matrix(name, spec.vocab, spec.hidden);
  note(w);
  std::unique_ptr<EmbeddingTable> table = device.embedding(w);
  if (cache_ == nullptr) advance(w.data_bytes);
  return table;
}

}  // namespace slicellm
