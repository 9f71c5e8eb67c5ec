#include "benchmark/roofline/work.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "slicellm/error.h"

namespace slicellm::roofline {
namespace {

constexpr std::array kModelShapes = {
    ModelShape{"qwen2.5-0.5b", 896, 4864, 24, 14, 2, 32000},
    ModelShape{"tinyllama-1.1b", 2048, 5632, 22, 32, 4, 32000},
};
constexpr const char* kHead = "head";

}  // namespace

const ModelShape& model_shape(const std::string& name) {
  for (const ModelShape& shape : kModelShapes) {
    if (name == shape.name) return shape;
  }
  throw Error(ErrorKind::invalid_argument, "shape", name, "qwen2.5-0.5b or tinyllama-1.1b");
}

std::vector<LinearShape> linear_shapes(const ModelShape& shape) {
  const int64_t hidden = shape.hidden;
  return {{"qkv", shape.qkv_width(), hidden, true, false, shape.layers},
          {"attention out", hidden, hidden, false, false, shape.layers},
          {"gate and up", 2 * shape.inner, hidden, true, true, shape.layers},
          {"down", hidden, shape.inner, false, false, shape.layers},
          {kHead, shape.vocabulary, hidden, true, false, 1}};
}

double OpWork::bound(const MachineLimits& limits) const {
  return std::max(bytes / limits.read_bytes, int8_operations / limits.int8_operations +
                                                 float_operations / limits.float_operations);
}

OpWork linear_work(const LinearShape& linear, const DTypeSpec& dtype, int64_t tokens) {
  const bool quantized = is_quantized(dtype.type);
  const auto group = static_cast<double>(dtype.group_size == 0 ? linear.in : dtype.group_size);
  const double bits = dtype_bits(dtype.type) + (quantized ? 24 / group : 0);
  const double operations = 2 * linear.weights() * static_cast<double>(tokens);
  return {linear.name, linear.copies, linear.weights() * bits / 8, quantized ? operations : 0,
          quantized ? 0 : operations};
}

std::vector<OpWork> step_work(const ModelShape& shape, const DTypeSpec& dtype,
                              const StepSize& size) {
  std::vector<OpWork> ops;
  for (const LinearShape& linear : linear_shapes(shape)) {
    const int64_t tokens = std::string_view(linear.name) == kHead ? 1 : size.tokens;
    ops.push_back(linear_work(linear, dtype, tokens * size.sequences));
  }
  // A token sees all before it and itself.
  const auto tokens = static_cast<double>(size.tokens);
  const auto keys =
      static_cast<double>(size.sequences) * (static_cast<double>(size.context) + tokens);
  const double pairs = static_cast<double>(size.sequences) * tokens *
                       (static_cast<double>(size.context) + (tokens + 1) / 2);
  ops.push_back({"attention", shape.layers,
                 keys * 2 * 2 * static_cast<double>(shape.kv_heads * shape.head_dim()), 0,
                 pairs * 4 * static_cast<double>(shape.hidden)});
  return ops;
}

}  // namespace slicellm::roofline
