#pragma once

// Vectors of floats as wide as the instruction set of the including file: 16 lanes with AVX-512F,
// 8 with AVX2, else 4, which on 64-bit ARM are NEON's, as every such CPU has it. One text serves
// all of them. Only kernel files (*_portable.cc, *_avx2.cc,
// *_avx512.cc) include this header; everything is in an anonymous namespace, so that no function
// compiled for one instruction set can be linked in the place of another's.

#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace slicellm::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef uint32_t BitVec __attribute__((vector_size(4 * kLanes)));

inline Vec load(const float* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

inline void store(float* p, Vec v) { __builtin_memcpy(p, &v, sizeof(v)); }

inline Vec splat(float x) {
#if defined(__AVX512F__)
  return _mm512_set1_ps(x);
#elif defined(__AVX2__)
  return _mm256_set1_ps(x);
#else
  return Vec{x, x, x, x};
#endif
}

inline BitVec bits(Vec v) { return reinterpret_cast<BitVec>(v); }
inline Vec from_bits(BitVec v) { return reinterpret_cast<Vec>(v); }

// a * b + c; fused where the instruction set fuses.
inline Vec multiply_add(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}

inline Vec maximum(Vec a, Vec b) { return a > b ? a : b; }

// kLanes halves (IEEE binary16) as floats; exact.
inline Vec load(const uint16_t* p) {
#if defined(__AVX512F__)
  // The form without a mask draws a false warning (uninitialised) from GCC 12.
  return _mm512_maskz_cvtph_ps(__mmask16{0xffff},
                               _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__aarch64__)
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
#else
  const BitVec h = {p[0], p[1], p[2], p[3]};
  const BitVec magnitude = (h & 0x7fff) << 13;
  // Exponent and mantissa are in place but for the bias, 112 too low: also right for subnormals.
  const Vec scaled = from_bits(magnitude) * 0x1p112f;
  const auto special = (h & 0x7c00) == 0x7c00;  // infinity or NaN
  const BitVec value = special ? (magnitude | 0x7f800000) : bits(scaled);
  return from_bits(value | (h & 0x8000) << 16);
#endif
}

// kLanes signed bytes as floats; exact.
inline Vec load(const int8_t* p) {
#if defined(__AVX512F__)
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  // With masks as above.
  return _mm512_maskz_cvtepi32_ps(__mmask16{0xffff},
                                  _mm512_maskz_cvtepi8_epi32(__mmask16{0xffff}, bytes));
#elif defined(__AVX2__)
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
#elif defined(__aarch64__)
  int32_t four;
  __builtin_memcpy(&four, p, sizeof(four));
  const int16x8_t words = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)));
  return vcvtq_f32_s32(vmovl_s16(vget_low_s16(words)));
#else
  return Vec{static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]),
             static_cast<float>(p[3])};
#endif
}

// The first `count` lanes (all, if count >= kLanes); the others are 0 or stay unwritten.
inline Vec load_part(const float* p, int64_t count) {
  if (count >= kLanes) return load(p);
  float lane[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) lane[i] = p[i];
  return load(lane);
}

inline void store_part(float* p, Vec v, int64_t count) {
  if (count >= kLanes) return store(p, v);
  float lane[kLanes];
  store(lane, v);
  for (int64_t i = 0; i < count; ++i) p[i] = lane[i];
}

// Sum of the lanes, pairwise.
inline float sum_lanes(Vec v) {
  float lane[kLanes];
  store(lane, v);
  for (int n = kLanes / 2; n > 0; n /= 2) {
    for (int i = 0; i < n; ++i) lane[i] += lane[i + n];
  }
  return lane[0];
}

inline float max_lane(Vec v) {
  float result = v[0];
  for (int i = 1; i < kLanes; ++i) result = v[i] > result ? v[i] : result;
  return result;
}

// e^x with a relative error below 1.5e-7; exactly 1 at 0, 0 below -87, at most e^88. NaN stays NaN.
// e^x = 2^n * e^r with n = round(x / ln 2); the polynomial is a minimax fit of e^r on |r| <= ln2/2.
inline Vec exponential(Vec x) {
  constexpr float kRound = 0x1.8p23f;  // adding it leaves round(x) in the low mantissa bits
  const Vec capped = x > 88.0f ? splat(88.0f) : x;
  const Vec shifted = multiply_add(capped, splat(1.44269504f), splat(kRound));
  const Vec n = shifted - kRound;
  // ln 2 in two parts; n * 0.693359375 is exact.
  Vec r = multiply_add(n, splat(-0.693359375f), capped);
  r = multiply_add(n, splat(2.12194440e-4f), r);
  Vec p = splat(1.38145406e-3f);
  p = multiply_add(p, r, splat(8.36874545e-3f));
  p = multiply_add(p, r, splat(4.16683890e-2f));
  p = multiply_add(p, r, splat(1.66665211e-1f));
  p = multiply_add(p, r, splat(4.99999940e-1f));
  const Vec fraction = multiply_add(r * r, p, r) + 1.0f;
  const Vec power = from_bits((bits(shifted) + 127) << 23);  // 2^n
  return x < -87.0f ? Vec{} : fraction * power;
}

}  // namespace
}  // namespace slicellm::cpu
