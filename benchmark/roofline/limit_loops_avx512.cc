#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes the undefined vectors of its own header for uninitialised ones.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include "benchmark/roofline/limit_loops_impl.h"

namespace slicellm::roofline {
namespace {

struct Avx512 {
  static constexpr size_t kBytes = 64;
  static constexpr int kDotProducts = 64;
  using Int = __m512i;
  using Float = __m512;

  static Int load(const std::byte* p) { return _mm512_loadu_si512(p); }
  static Int mix(Int a, Int b) { return _mm512_xor_si512(a, b); }
  static uint64_t first(Int v) {
    return static_cast<uint64_t>(_mm_cvtsi128_si64(_mm512_castsi512_si128(v)));
  }
  static Int bytes(char v) { return _mm512_set1_epi8(v); }
  static Int dot(Int sum, Int a, Int b) { return _mm512_dpbusd_epi32(sum, a, b); }
  static Float broadcast(float v) { return _mm512_set1_ps(v); }
  static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static float first_float(Float v) { return _mm512_cvtss_f32(v); }
};

}  // namespace

const LimitLoops avx512_limit_loops = limit_loops<Avx512>();

}  // namespace slicellm::roofline
