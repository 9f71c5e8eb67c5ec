#include <immintrin.h>

#include "cpu/linear_tile.h"

namespace slicellm::cpu {
namespace {

struct Avx2 {
  static constexpr int kRows = 8;
  using Float = __m256;
  using Int = __m256i;

  static Float zero() { return _mm256_setzero_ps(); }
  static Float broadcast(float v) { return _mm256_set1_ps(v); }
  static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static Float to_float(Int v) { return _mm256_cvtepi32_ps(v); }
  static void store(float* p, Float v) { _mm256_storeu_ps(p, v); }
  static Float load_float(const void* p) { return _mm256_loadu_ps(floats(p)); }
  static Float load_half(const void* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Float load_bfloat16(const void* p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  static Int load_bytes(const uint8_t* p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  static Int load_codes(const uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  // sum + the first 16-bit half of each pair times that of `factor`.
  static Int add_pairs(Int sum, Int pairs, int32_t factor) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi32(factor)));
  }
  static Int sub(Int a, Int b) { return _mm256_sub_epi32(a, b); }
  template <int kShift, int kMask>
  static Int field(Int v) {
    if constexpr (kShift != 0) v = _mm256_srli_epi32(v, kShift);
    if constexpr (kShift == 24 && kMask == 0xff) return v;
    if constexpr (kShift == 28) return v;
    return _mm256_and_si256(v, _mm256_set1_epi32(kMask));
  }
};

inline __m256i broadcast_word(const int8_t* a) {
  int32_t word;
  __builtin_memcpy(&word, a, 4);
  return _mm256_set1_epi32(word);
}

// Keeps the compiler from turning a chain of integer additions into a tree, which would need more
// registers than there are.
inline void keep_order(__m256i& sum) { asm("" : "+x"(sum)); }

// Exact: a pair is at most 2 * 15 * 127 = 3810 and 16-bit sums take eight pairs (30480) between
// flushes, which come every four steps.
struct DotInt4 {
  static constexpr ActivationKind kActivation = ActivationKind::int8;
  using Word = __m256i;
  static constexpr int kWordBytes = 4;
  static constexpr int kCodeBytes = 32;
  __m256i sum = _mm256_setzero_si256(), pairs = _mm256_setzero_si256();

  static void load(const uint8_t* codes, __m256i w[2]) {
    const __m256i nibble = _mm256_set1_epi8(0xf);
    const __m256i both = Avx2::load_codes(codes);
    w[0] = _mm256_and_si256(both, nibble);
    w[1] = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
  }
  void add(__m256i w, const int8_t* a) {
    pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(w, broadcast_word(a)));
    keep_order(pairs);
  }
  __m256i total() const {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  void flush() {
    sum = total();
    pairs = _mm256_setzero_si256();
  }
};

// 8-bit codes would overflow the 16-bit pairs, so both sides are 16 bits wide: even columns, then
// odd ones.
struct DotInt8 {
  static constexpr ActivationKind kActivation = ActivationKind::int16;
  using Word = __m256i;
  static constexpr int kWordBytes = 8;
  static constexpr int kCodeBytes = 64;
  __m256i sum = _mm256_setzero_si256();

  static void load(const uint8_t* codes, __m256i w[2]) {
    w[0] = Avx2::load_codes(codes);
    w[1] = Avx2::load_codes(codes + 32);
  }
  void add(__m256i w, const int8_t* a) {
    const __m256i even = _mm256_and_si256(w, _mm256_set1_epi16(0xff));
    const __m256i odd = _mm256_srli_epi16(w, 8);
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(even, broadcast_word(a)));
    keep_order(sum);
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(odd, broadcast_word(a + 4)));
    keep_order(sum);
  }
  __m256i total() const { return sum; }
  void flush() {}
};

template <int kTokens>
using DotsInt4 = TokenDots<DotInt4, kTokens>;
template <int kTokens>
using DotsInt8 = TokenDots<DotInt8, kTokens>;

}  // namespace

const LinearKernels avx2_linear_kernels = {
    {
        float_kernel<Avx2, WeightKind::float32, 2>(TokenCounts<6>{}),
        float_kernel<Avx2, WeightKind::float16, 2>(TokenCounts<6>{}),
        float_kernel<Avx2, WeightKind::bfloat16, 2>(TokenCounts<6>{}),
        decoded_kernel<Avx2, false>(TokenCounts<6>{}),
        decoded_kernel<Avx2, true>(TokenCounts<6>{}),
    },
    {
        integer_kernel<Avx2, DotsInt8>(TokenCounts<8>{}),
        integer_kernel<Avx2, DotsInt4>(TokenCounts<8>{}),
    },
};

}  // namespace slicellm::cpu
