#include <immintrin.h>

#include "benchmark/roofline/limit_loops_impl.h"

namespace slicellm::roofline {
namespace {

struct Avx2 {
  static constexpr size_t kBytes = 32;
  static constexpr int kDotProducts = 32;
  using Int = __m256i;
  using Float = __m256;

  static Int load(const std::byte* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static Int mix(Int a, Int b) { return _mm256_xor_si256(a, b); }
  static uint64_t first(Int v) { return static_cast<uint64_t>(_mm256_extract_epi64(v, 0)); }
  static Int bytes(char v) { return _mm256_set1_epi8(v); }
  static Int dot(Int sum, Int a, Int b) {
    const Int pairs = _mm256_maddubs_epi16(a, b);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static Float broadcast(float v) { return _mm256_set1_ps(v); }
  static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static float first_float(Float v) { return _mm256_cvtss_f32(v); }
};

}  // namespace

const LimitLoops avx2_limit_loops = limit_loops<Avx2>();

}  // namespace slicellm::roofline
