#pragma once

#include <bit>
#include <cstdint>

// Conversions between 16-bit float types and float32 in plain integer and float arithmetic, written
// without branches on the value so that loops over them vectorise on any CPU.
namespace slicellm {

inline float half_bits_to_float(uint16_t h) {
  // Shifted into place the half is a float32 whose exponent is 112 too small. Multiplying by 2^112
  // mends that exactly, for subnormals too.
  const uint32_t magnitude = static_cast<uint32_t>(h & 0x7fffu) << 13;
  const float value = std::bit_cast<float>(magnitude) * 0x1p112f;
  uint32_t bits = std::bit_cast<uint32_t>(value);
  bits |= magnitude >= (31u << 23) ? 0xffu << 23 : 0u;  // infinity and NaN
  return std::bit_cast<float>(bits | static_cast<uint32_t>(h & 0x8000u) << 16);
}

inline uint16_t float_to_half_bits(float f) {
  const uint32_t bits = std::bit_cast<uint32_t>(f);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Normal halves: move the exponent and round the 13 dropped bits to nearest even. A carry out of
  // the mantissa raises the exponent, up to infinity, as it should.
  const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  // Subnormal halves: adding 0.5 aligns the value with a unit of 2^-24; the addition rounds.
  const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
  const uint32_t subnormal = std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(0.5f);
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  uint32_t half = magnitude < (113u << 23) ? subnormal : normal;
  half = magnitude >= (143u << 23) ? special : half;
  return static_cast<uint16_t>(sign | half);
}

inline float bfloat16_bits_to_float(uint16_t b) {
  return std::bit_cast<float>(static_cast<uint32_t>(b) << 16);
}

inline uint16_t float_to_bfloat16_bits(float f) {
  const uint32_t bits = std::bit_cast<uint32_t>(f);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const uint32_t quiet_nan = bits >> 16 | 0x40u;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
}

}  // namespace slicellm
