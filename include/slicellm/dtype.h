#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace slicellm {

// Element types of weights, activations and KV. int8 and int4 are unsigned codes with a scale and
// a minimum per row or per group of a row (see Weight in tensor.h).
enum class DType : uint8_t { float32, float16, bfloat16, int8, int4 };

constexpr int dtype_bits(DType t) {
  return t == DType::float32 ? 32 : t == DType::int8 ? 8 : t == DType::int4 ? 4 : 16;
}
constexpr bool is_quantized(DType t) { return t == DType::int8 || t == DType::int4; }

// A weight type as the command line writes it: float32, float16 (fp16, half), bfloat16 (bf16),
// int8, int4 (per row) or int4g<N> (groups of N input columns; "int4g" is int4g128).
struct DTypeSpec {
  DType type = DType::float16;
  int64_t group_size = 0;  // 0 = one scale per row

  bool operator==(const DTypeSpec&) const = default;
};

std::string to_string(DType t);
std::string to_string(const DTypeSpec& spec);

// Throws Error(invalid_argument) naming `field`; Error(unsupported) for dtypes that exist in
// fastllm but not here (fp8, int2g, ...).
DTypeSpec parse_dtype(std::string_view text, std::string_view field = "dtype");

float half_to_float(uint16_t h);
uint16_t float_to_half(float f);  // round to nearest even
float bfloat16_to_float(uint16_t b);
uint16_t float_to_bfloat16(float f);  // round to nearest even

}  // namespace slicellm
