#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "format/half.h"

// 16-bit floating point for the emulated headers: every operation rounds its exact result once, to
// nearest even, as the hardware does.
namespace simt {

struct Binary16 {
  static uint16_t from_float(float f) { return slicellm::float_to_half_bits(f); }
  static float to_float(uint16_t bits) { return slicellm::half_bits_to_float(bits); }
};

struct Brain16 {
  static uint16_t from_float(float f) { return slicellm::float_to_bfloat16_bits(f); }
  static float to_float(uint16_t bits) { return slicellm::bfloat16_bits_to_float(bits); }
};

// To float32, rounded to odd: towards zero, then with the last bit set if anything was lost.
// Rounding that to 16 bits gives what rounding the exact value would have given (Boldo and
// Melquiond, Emulation of FMA and correctly rounded sums, 2008).
inline float narrow_to_odd(double d) {
  auto f = static_cast<float>(d);
  if (!std::isfinite(d) || double{f} == d) return f;
  if (std::fabs(double{f}) > std::fabs(d)) f = std::nextafter(f, 0.0f);
  return std::bit_cast<float>(std::bit_cast<uint32_t>(f) | 1u);
}

// a * b + c, rounded to odd.
inline float fma_to_odd(float a, float b, float c) {
  const double product = double{a} * double{b};  // exact
  double sum = product + double{c};
  // Knuth's two-sum: what the addition lost.
  const double part = sum - product;
  const double lost = (product - (sum - part)) + (double{c} - part);
  if (std::isfinite(sum) && lost != 0 && !(std::bit_cast<uint64_t>(sum) & 1)) {
    sum = std::nextafter(sum, lost > 0 ? HUGE_VAL : -HUGE_VAL);
  }
  return narrow_to_odd(sum);
}

template <class Format>
struct Small {
  uint16_t bits;

  Small() = default;
  Small(float f) : bits(Format::from_float(f)) {}
  Small(double d) : bits(Format::from_float(narrow_to_odd(d))) {}
  Small(int i) : Small(static_cast<double>(i)) {}
  Small(unsigned i) : Small(static_cast<double>(i)) {}
  operator float() const { return Format::to_float(bits); }

  static Small from_bits(uint16_t bits) {
    Small s;
    s.bits = bits;
    return s;
  }
};

template <class Format>
struct alignas(4) Pair {
  Small<Format> x, y;
  Pair() = default;
  Pair(Small<Format> low, Small<Format> high) : x(low), y(high) {}
};

}  // namespace simt

// ---- what cuda_fp16.h and cuda_bf16.h name alike -----------------------------------------------
template <class F>
simt::Small<F> __hfma(simt::Small<F> a, simt::Small<F> b, simt::Small<F> c) {
  return simt::Small<F>(simt::fma_to_odd(a, b, c));
}
template <class F>
simt::Small<F> __hadd(simt::Small<F> a, simt::Small<F> b) {
  return simt::Small<F>(simt::fma_to_odd(a, 1.0f, b));
}
template <class F>
simt::Small<F> __hsub(simt::Small<F> a, simt::Small<F> b) {
  return simt::Small<F>(simt::fma_to_odd(a, 1.0f, -static_cast<float>(b)));
}
template <class F>
simt::Small<F> __hmul(simt::Small<F> a, simt::Small<F> b) {
  return simt::Small<F>(simt::fma_to_odd(a, b, -0.0f));
}
template <class F>
simt::Small<F> __hneg(simt::Small<F> a) {
  return simt::Small<F>::from_bits(a.bits ^ 0x8000u);
}
template <class F>
simt::Small<F> __habs(simt::Small<F> a) {
  return simt::Small<F>::from_bits(a.bits & 0x7fffu);
}
template <class F>
simt::Small<F> __hmax(simt::Small<F> a, simt::Small<F> b) {
  return simt::Small<F>(std::fmax(static_cast<float>(a), static_cast<float>(b)));
}
template <class F>
simt::Small<F> __hmin(simt::Small<F> a, simt::Small<F> b) {
  return simt::Small<F>(std::fmin(static_cast<float>(a), static_cast<float>(b)));
}

#define SIMT_PAIRWISE2(name2, name)                       \
  template <class F>                                      \
  simt::Pair<F> name2(simt::Pair<F> a, simt::Pair<F> b) { \
    return {name(a.x, b.x), name(a.y, b.y)};              \
  }
SIMT_PAIRWISE2(__hadd2, __hadd)
SIMT_PAIRWISE2(__hsub2, __hsub)
SIMT_PAIRWISE2(__hmul2, __hmul)
SIMT_PAIRWISE2(__hmax2, __hmax)
SIMT_PAIRWISE2(__hmin2, __hmin)
#undef SIMT_PAIRWISE2
template <class F>
simt::Pair<F> __hfma2(simt::Pair<F> a, simt::Pair<F> b, simt::Pair<F> c) {
  return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
template <class F>
simt::Pair<F> __hneg2(simt::Pair<F> a) {
  return {__hneg(a.x), __hneg(a.y)};
}
template <class F>
simt::Pair<F> __habs2(simt::Pair<F> a) {
  return {__habs(a.x), __habs(a.y)};
}
template <class F>
bool __hisnan(simt::Small<F> a) {
  return std::isnan(static_cast<float>(a));
}
template <class F>
float __low2float(simt::Pair<F> a) {
  return a.x;
}
template <class F>
float __high2float(simt::Pair<F> a) {
  return a.y;
}
