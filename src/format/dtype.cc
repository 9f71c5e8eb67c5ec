#include "slicellm/dtype.h"

#include <array>
#include <charconv>

#include "format/byte_reader.h"
#include "format/half.h"
#include "slicellm/error.h"

namespace slicellm {
namespace {

constexpr int64_t kDefaultGroup = 128;  // what fastllm's "int4g" means
constexpr int64_t kMaxGroup = 1 << 20;

constexpr const char* kExpected =
    "one of float32, float16, bfloat16, int8, int4, int4g<N> (N input columns per group)";

// Known to fastllm's command line but not handled here.
constexpr std::array<std::string_view, 4> kForeign = {"fp8", "float8", "fp8_e4m3", "nvfp4"};

}  // namespace

std::string to_string(DType t) {
  switch (t) {
    case DType::float32:
      return "float32";
    case DType::float16:
      return "float16";
    case DType::bfloat16:
      return "bfloat16";
    case DType::int8:
      return "int8";
    case DType::int4:
      return "int4";
  }
  return "unknown";
}

std::string to_string(const DTypeSpec& spec) {
  std::string text = to_string(spec.type);
  if (spec.group_size > 0) text.append("g").append(std::to_string(spec.group_size));
  return text;
}

DTypeSpec parse_dtype(std::string_view text, std::string_view field) {
  auto fail = [&](ErrorKind kind) {
    return Error(kind, std::string(field), shown(text), kExpected);
  };
  if (text == "float32" || text == "fp32") return {DType::float32, 0};
  if (text == "float16" || text == "fp16" || text == "half") return {DType::float16, 0};
  if (text == "bfloat16" || text == "bf16") return {DType::bfloat16, 0};
  if (text == "int8") return {DType::int8, 0};
  if (text == "int4") return {DType::int4, 0};
  if (text == "int4g") return {DType::int4, kDefaultGroup};
  if (text.starts_with("int4g")) {
    const std::string_view digits = text.substr(5);
    int64_t group = 0;
    auto [end, code] = std::from_chars(digits.data(), digits.data() + digits.size(), group);
    if (code != std::errc() || end != digits.data() + digits.size() || group < 1 ||
        group > kMaxGroup) {
      throw fail(ErrorKind::invalid_argument);
    }
    return {DType::int4, group};
  }
  for (std::string_view name : kForeign) {
    if (text == name) throw fail(ErrorKind::unsupported);
  }
  if (text.starts_with("int2") || text.starts_with("ggml_")) throw fail(ErrorKind::unsupported);
  throw fail(ErrorKind::invalid_argument);
}

float half_to_float(uint16_t h) { return half_bits_to_float(h); }
uint16_t float_to_half(float f) { return float_to_half_bits(f); }
float bfloat16_to_float(uint16_t b) { return bfloat16_bits_to_float(b); }
uint16_t float_to_bfloat16(float f) { return float_to_bfloat16_bits(f); }

}  // namespace slicellm
