#include "cpu/linear_neon.h"

namespace slicellm::cpu {
namespace {

// Codes are at most 15, or at least -128, and activations at most 127 in size: 16 bits hold eight
// products of int4 (four steps) or two of int8 (one step) exactly, to be added pairwise to 32 bits.
template <bool kInt4, int kTokens>
struct Dots {
  static constexpr CodeOrder kOrder = CodeOrder::words;
  static constexpr bool kSigned = !kInt4;
  static constexpr ActivationKind kActivation = ActivationKind::int8;
  int16x8_t pairs[kTokens][4] = {};  // two rows each; of int8 not used
  int32x4_t sums[kTokens][4] = {};   // two rows each, a row in two parts

  static inline __attribute__((always_inline)) int8x16_t broadcast_word(const int8_t* a) {
    int32_t word;
    __builtin_memcpy(&word, a, 4);
    return vreinterpretq_s8_s32(vdupq_n_s32(word));
  }

  inline __attribute__((always_inline)) void step(const uint8_t*& codes, const int8_t*& a) {
    using Codes = StepCodes<kInt4>;
    const Codes w = Codes::load(codes);
    prefetch<Codes::kBytes, 2 * kTokens>(codes);
    codes += Codes::kBytes;
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) {
      const int8x16_t first = broadcast_word(a + t * 4);
      const int8x16_t second = broadcast_word(a + (kTokens + t) * 4);
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        int16x8_t& low = pairs[t][2 * v];
        int16x8_t& high = pairs[t][2 * v + 1];
        if constexpr (kInt4) {
          low = vmlal_s8(low, vget_low_s8(w.first[v]), vget_low_s8(first));
          high = vmlal_high_s8(high, w.first[v], first);
        } else {
          low = vmull_s8(vget_low_s8(w.first[v]), vget_low_s8(first));
          high = vmull_high_s8(w.first[v], first);
        }
        low = vmlal_s8(low, vget_low_s8(w.second[v]), vget_low_s8(second));
        high = vmlal_high_s8(high, w.second[v], second);
        if constexpr (!kInt4) {
          sums[t][2 * v] = vpadalq_s16(sums[t][2 * v], low);
          sums[t][2 * v + 1] = vpadalq_s16(sums[t][2 * v + 1], high);
        }
      }
    }
    a += 8 * kTokens;
  }
  inline __attribute__((always_inline)) int32x4_t sum(int t, int v) const {
    return kInt4 ? vpadalq_s16(sums[t][v], pairs[t][v]) : sums[t][v];
  }
  inline __attribute__((always_inline)) void flush() {
    if constexpr (kInt4) {
      for (int t = 0; t < kTokens; ++t) {
        for (int v = 0; v < 4; ++v) {
          sums[t][v] = sum(t, v);
          pairs[t][v] = vdupq_n_s16(0);
        }
      }
    }
  }
  inline __attribute__((always_inline)) Neon::Int total(int t) const {
    return {vpaddq_s32(sum(t, 0), sum(t, 1)), vpaddq_s32(sum(t, 2), sum(t, 3))};
  }
};

template <int kTokens>
using DotsInt4 = Dots<true, kTokens>;
template <int kTokens>
using DotsInt8 = Dots<false, kTokens>;

}  // namespace

constinit const LinearKernels neon_linear_kernels = {
    {
        float_kernel<Neon, WeightKind::float32, 2>(TokenCounts<6>{}),
        float_kernel<Neon, WeightKind::float16, 2>(TokenCounts<6>{}),
        float_kernel<Neon, WeightKind::bfloat16, 2>(TokenCounts<6>{}),
        decoded_kernel<Neon, false>(TokenCounts<6>{}),
        decoded_kernel<Neon, true>(TokenCounts<6>{}),
    },
    {
        integer_kernel<Neon, DotsInt8>(TokenCounts<4>{}),
        integer_kernel<Neon, DotsInt4>(TokenCounts<4>{}),
    },
};

}  // namespace slicellm::cpu
