#pragma once

#include <arm_neon.h>

#include "cpu/linear_tile.h"

// The vector operations of 64-bit ARM for the matrix kernels (`S` in linear_tile.h), which all of
// its instruction sets share: eight rows in two vectors.
namespace slicellm::cpu {
namespace {

struct Neon {
  static constexpr int kRows = 8;
  struct Float {
    float32x4_t low, high;
  };
  struct Int {
    int32x4_t low, high;
  };

  static Float zero() { return {vdupq_n_f32(0), vdupq_n_f32(0)}; }
  static Float broadcast(float v) { return {vdupq_n_f32(v), vdupq_n_f32(v)}; }
  static Float add(Float a, Float b) {
    return {vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)};
  }
  static Float mul(Float a, Float b) {
    return {vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)};
  }
  static Float fma(Float a, Float b, Float c) {
    return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)};
  }
  static Float to_float(Int v) { return {vcvtq_f32_s32(v.low), vcvtq_f32_s32(v.high)}; }
  static void store(float* p, Float v) {
    vst1q_f32(p, v.low);
    vst1q_f32(p + 4, v.high);
  }
  static Float load_float(const void* p) {
    return {vld1q_f32(floats(p)), vld1q_f32(floats(p) + 4)};
  }
  static uint16x8_t load_halves(const void* p) {
    return vreinterpretq_u16_u8(vld1q_u8(static_cast<const uint8_t*>(p)));
  }
  static Float load_half(const void* p) {
    const float16x8_t half = vreinterpretq_f16_u16(load_halves(p));
    return {vcvt_f32_f16(vget_low_f16(half)), vcvt_high_f32_f16(half)};
  }
  static Float load_bfloat16(const void* p) {
    const uint16x8_t half = load_halves(p);
    return {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(half), 16)),
            vreinterpretq_f32_u32(vshll_high_n_u16(half, 16))};
  }
  static Int load_bytes(const uint8_t* p) {
    const int16x8_t wide = vreinterpretq_s16_u16(vmovl_u8(vld1_u8(p)));
    return {vmovl_s16(vget_low_s16(wide)), vmovl_high_s16(wide)};
  }
  static Int load_signed_bytes(const uint8_t* p) {
    const int16x8_t wide = vmovl_s8(vreinterpret_s8_u8(vld1_u8(p)));
    return {vmovl_s16(vget_low_s16(wide)), vmovl_high_s16(wide)};
  }
  static Int load_codes(const uint8_t* p) {
    return {vreinterpretq_s32_u8(vld1q_u8(p)), vreinterpretq_s32_u8(vld1q_u8(p + 16))};
  }
  static Int add_pairs(Int sum, Int zero, int32_t factor) {
    return {vmlaq_n_s32(sum.low, zero.low, factor), vmlaq_n_s32(sum.high, zero.high, factor)};
  }
  static Int sub(Int a, Int b) { return {vsubq_s32(a.low, b.low), vsubq_s32(a.high, b.high)}; }
  template <int kShift, int kMask>
  static int32x4_t field(int32x4_t v) {
    uint32x4_t bits = vreinterpretq_u32_s32(v);
    if constexpr (kShift != 0) bits = vshrq_n_u32(bits, kShift);
    if constexpr (kShift + (kMask == 0xff ? 8 : 4) < 32) bits = vandq_u32(bits, vdupq_n_u32(kMask));
    return vreinterpretq_s32_u32(bits);
  }
  template <int kShift, int kMask>
  static Int field(Int v) {
    return {field<kShift, kMask>(v.low), field<kShift, kMask>(v.high)};
  }
};

// Codes of one step for eight rows: 32 bytes of int4, 64 of int8.
template <bool kInt4>
struct StepCodes {
  static constexpr int kBytes = kInt4 ? 32 : 64;
  int8x16_t first[2], second[2];  // of int4: what the low and the high nibbles hold

  static inline __attribute__((always_inline)) StepCodes load(const uint8_t* codes) {
    if constexpr (kInt4) {
      const uint8x16_t nibble = vdupq_n_u8(0xf);
      const uint8x16_t low = vld1q_u8(codes), high = vld1q_u8(codes + 16);
      return {
          {vreinterpretq_s8_u8(vandq_u8(low, nibble)), vreinterpretq_s8_u8(vandq_u8(high, nibble))},
          {vreinterpretq_s8_u8(vshrq_n_u8(low, 4)), vreinterpretq_s8_u8(vshrq_n_u8(high, 4))}};
    } else {
      const auto from = reinterpret_cast<const int8_t*>(codes);
      return {{vld1q_s8(from), vld1q_s8(from + 16)}, {vld1q_s8(from + 32), vld1q_s8(from + 48)}};
    }
  }
};

}  // namespace
}  // namespace slicellm::cpu
