#include "model/weights.h"

#include <algorithm>
#include <array>
#include <cstring>

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

std::vector<float> gather(const std::vector<float>& values, std::span<const int64_t> order,
                          int64_t width) {
  std::vector<float> out;
  out.reserve(order.size() * width);
  for (int64_t row : order) {
    out.insert(out.end(), values.begin() + row * width, values.begin() + (row + 1) * width);
  }
  return out;
}

// int4 rows of an odd width share bytes with their neighbours: move nibble by nibble.
void gather_nibbles(const Weight& w, std::span<const int64_t> order, uint8_t* out) {
  const auto* in = static_cast<const uint8_t*>(w.data);
  int64_t to = 0;
  for (int64_t row : order) {
    for (int64_t i = row * w.cols(); i < (row + 1) * w.cols(); ++i, ++to) {
      const uint8_t code = i % 2 == 0 ? in[i / 2] >> 4 : in[i / 2] & 15;
      out[to / 2] |= to % 2 == 0 ? code << 4 : code;
    }
  }
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

Weight gather_rows(const Weight& w, std::span<const int64_t> order) {
  Weight out = w;
  out.shape = {static_cast<int64_t>(order.size()), w.cols()};
  const size_t row_bits = static_cast<size_t>(w.cols()) * dtype_bits(w.dtype);
  auto buffer = std::make_shared<std::vector<uint8_t>>((row_bits * order.size() + 7) / 8);
  if (row_bits % 8 == 0) {
    const auto* in = static_cast<const uint8_t*>(w.data);
    for (size_t i = 0; i < order.size(); ++i) {
      std::memcpy(buffer->data() + i * row_bits / 8, in + order[i] * (row_bits / 8), row_bits / 8);
    }
  } else {
    gather_nibbles(w, order, buffer->data());
  }
  if (is_quantized(w.dtype)) {
    out.scale = gather(w.scale, order, w.groups());
    out.minimum = gather(w.minimum, order, w.groups());
  }
  out.data = buffer->data();
  out.data_bytes = buffer->size();
  out.owner = std::move(buffer);
  return out;
}

std::vector<int64_t> split_interleaved_qkv(int64_t rows, int32_t heads) {
  const int64_t head_dim = rows / heads / 3;
  std::vector<int64_t> order;
  order.reserve(rows);
  for (int64_t part = 0; part < 3; ++part) {
    for (int64_t head = 0; head < heads; ++head) {
      for (int64_t d = 0; d < head_dim; ++d) order.push_back((head * 3 + part) * head_dim + d);
    }
  }
  return order;
}

WeightLoader::WeightLoader(const ModelFile& file, Device& device, const ModelOptions& options,
                           const ModelLayout& layout)
    : file_(file), device_(device), options_(options) {
  if (!options.progress) return;
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

std::unique_ptr<PackedLinear> WeightLoader::linear(const LinearSource& source, bool gated) {
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
      const std::vector<int64_t> order = split_interleaved_qkv(part.rows, source.interleaved_heads);
      w = gather_rows(w, order);
      if (!bias.empty()) bias = gather(bias, order, 1);
    }
    if (target && !is_quantized(w.dtype)) w = convert(w, *target, device_.threads());
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
  std::unique_ptr<PackedLinear> packed = device_.pack(stack, biases, options_.activation, gated);
  advance(bytes);
  return packed;
}

std::unique_ptr<PackedNorm> WeightLoader::norm(const std::string& name, const ModelSpec& spec) {
  NormWeights norm{spec.norm, spec.norm_eps, vector(name + ".weight", spec.hidden), {}};
  if (spec.norm == NormKind::layer) norm.bias = vector(name + ".bias", spec.hidden);
  return device_.pack_norm(norm);
}

std::unique_ptr<EmbeddingTable> WeightLoader::embedding(const std::string& name,
                                                        const ModelSpec& spec) {
  const Weight w = matrix(name, spec.vocab, spec.hidden);
  note(w);
  std::unique_ptr<EmbeddingTable> table = device_.embedding(w);
  advance(w.data_bytes);
  return table;
}

}  // namespace slicellm
