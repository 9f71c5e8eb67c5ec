#include "cpu/linear_neon.h"

namespace slicellm::cpu {
namespace {

// SMMLA: two rows of eight columns meet two tokens. With an odd number of tokens the last one
// meets itself.
template <bool kInt4, int kTokens>
struct Dots {
  static constexpr CodeOrder kOrder = CodeOrder::row_pairs;
  static constexpr bool kSigned = !kInt4;
  static constexpr ActivationKind kActivation = ActivationKind::int8_steps;
  static constexpr int kPairs = (kTokens + 1) / 2;
  // [pair of tokens][pair of rows]: first row times both tokens, then the second.
  int32x4_t sums[kPairs][4] = {};

  static inline __attribute__((always_inline)) int8x16_t load_pair(const int8_t* a, int pair) {
    if (2 * pair + 1 < kTokens) return vld1q_s8(a + pair * 16);
    const int8x8_t last = vld1_s8(a + pair * 16);
    return vcombine_s8(last, last);
  }

  inline __attribute__((always_inline)) void step(const uint8_t*& codes, const int8_t*& a) {
    using Codes = StepCodes<kInt4>;
    const Codes w = Codes::load(codes);
    prefetch<Codes::kBytes, 2 * kTokens>(codes);
    codes += Codes::kBytes;
    // int4: low nibbles hold rows 0, 1 and 4, 5; int8: the first half holds rows 0 to 3.
    const int8x16_t rows[4] = {w.first[0], kInt4 ? w.second[0] : w.first[1],
                               kInt4 ? w.first[1] : w.second[0], w.second[1]};
#pragma GCC unroll 8
    for (int pair = 0; pair < kPairs; ++pair) {
      const int8x16_t tokens = load_pair(a, pair);
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) sums[pair][r] = vmmlaq_s32(sums[pair][r], rows[r], tokens);
    }
    a += 8 * kTokens;
  }
  void flush() {}
  inline __attribute__((always_inline)) Neon::Int total(int t) const {
    const int32x4_t(&sum)[4] = sums[t / 2];
    if (t % 2 == 0) return {vuzp1q_s32(sum[0], sum[1]), vuzp1q_s32(sum[2], sum[3])};
    return {vuzp2q_s32(sum[0], sum[1]), vuzp2q_s32(sum[2], sum[3])};
  }
};

template <int kTokens>
using DotsInt4 = Dots<true, kTokens>;
template <int kTokens>
using DotsInt8 = Dots<false, kTokens>;

}  // namespace

// The exact kernels have nothing to gain; neon_linear_kernels is there before any other object.
const LinearKernels i8mm_linear_kernels = {
    neon_linear_kernels.exact,
    {
        integer_kernel<Neon, DotsInt8>(TokenCounts<8>{}),
        integer_kernel<Neon, DotsInt4>(TokenCounts<8>{}),
    },
};

}  // namespace slicellm::cpu
