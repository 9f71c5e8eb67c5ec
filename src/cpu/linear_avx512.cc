#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes the undefined vectors of its own header for uninitialised ones.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include "cpu/linear_tile.h"

namespace slicellm::cpu {
namespace {

struct Avx512 {
  static constexpr int kRows = 16;
  using Float = __m512;
  using Int = __m512i;

  static Float zero() { return _mm512_setzero_ps(); }
  static Float broadcast(float v) { return _mm512_set1_ps(v); }
  static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static Float to_float(Int v) { return _mm512_cvtepi32_ps(v); }
  static void store(float* p, Float v) { _mm512_storeu_ps(p, v); }
  static Float load_float(const void* p) { return _mm512_loadu_ps(p); }
  static Float load_half(const void* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Float load_bfloat16(const void* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  static Int load_bytes(const uint8_t* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Int load_codes(const uint8_t* p) { return _mm512_loadu_si512(p); }
  // sum + the first 16-bit half of each pair times that of `factor`.
  static Int add_pairs(Int sum, Int pairs, int32_t factor) {
    return _mm512_dpwssd_epi32(sum, pairs, _mm512_set1_epi32(factor));
  }
  static Int sub(Int a, Int b) { return _mm512_sub_epi32(a, b); }
  template <int kShift, int kMask>
  static Int field(Int v) {
    if constexpr (kShift != 0) v = _mm512_srli_epi32(v, kShift);
    if constexpr (kShift == 24 && kMask == 0xff) return v;
    if constexpr (kShift == 28) return v;
    return _mm512_and_si512(v, _mm512_set1_epi32(kMask));
  }
};

// Weights are loaded once each and in the order of their addresses: left alone, the compiler spoils
// the processor's prefetching of the stream.
inline __m512i load_in_order(const uint8_t* codes) {
  __m512i v = _mm512_loadu_si512(codes);
  asm volatile("" : "+v"(v));
  return v;
}

// Exact: unsigned codes times signed codes, four products added to each 32-bit sum at once.
struct Dot {
  static constexpr ActivationKind kActivation = ActivationKind::int8;
  using Word = __m512i;
  static constexpr int kWordBytes = 4;
  __m512i sum = _mm512_setzero_si512();

  void add(__m512i w, const int8_t* a) {
    int32_t word;
    __builtin_memcpy(&word, a, 4);
    sum = _mm512_dpbusd_epi32(sum, w, _mm512_set1_epi32(word));
  }
  __m512i total() const { return sum; }
  void flush() {}
};

struct DotInt4 : Dot {
  static constexpr int kCodeBytes = 64;
  static void load(const uint8_t* codes, __m512i w[2]) {
    const __m512i nibble = _mm512_set1_epi8(0xf);
    const __m512i both = load_in_order(codes);
    w[0] = _mm512_and_si512(both, nibble);
    w[1] = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
  }
};

struct DotInt8 : Dot {
  static constexpr int kCodeBytes = 128;
  static void load(const uint8_t* codes, __m512i w[2]) {
    w[0] = load_in_order(codes);
    w[1] = load_in_order(codes + 64);
  }
};

template <int kTokens>
using DotsInt4 = TokenDots<DotInt4, kTokens>;
template <int kTokens>
using DotsInt8 = TokenDots<DotInt8, kTokens>;

}  // namespace

const LinearKernels avx512_linear_kernels = {
    {
        float_kernel<Avx512, WeightKind::float32, 1>(TokenCounts<12>{}),
        float_kernel<Avx512, WeightKind::float16, 1>(TokenCounts<12>{}),
        float_kernel<Avx512, WeightKind::bfloat16, 1>(TokenCounts<12>{}),
        decoded_kernel<Avx512, false>(TokenCounts<8>{}),
        decoded_kernel<Avx512, true>(TokenCounts<8>{}),
    },
    {
        integer_kernel<Avx512, DotsInt8>(TokenCounts<12>{}),
        integer_kernel<Avx512, DotsInt4>(TokenCounts<8>{}),
    },
};

}  // namespace slicellm::cpu
