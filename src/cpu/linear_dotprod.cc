#include "cpu/linear_neon.h"

namespace slicellm::cpu {
namespace {

// SDOT: four rows of four columns meet one word of activations, taken from a lane.
template <bool kInt4, int kTokens>
struct Dots {
  static constexpr CodeOrder kOrder = CodeOrder::words;
  static constexpr bool kSigned = !kInt4;
  static constexpr ActivationKind kActivation = ActivationKind::int8;
  int32x4_t sums[kTokens][2] = {};

  // Words of all tokens for the first four columns of a step, then for the others.
  static constexpr int kWords = 2 * kTokens;
  struct Words {
    int8x16_t vector[(kWords + 3) / 4];
  };
  static inline __attribute__((always_inline)) Words load_words(const int8_t* a) {
    Words words;
    for (int i = 0; i < kWords / 4; ++i) words.vector[i] = vld1q_s8(a + i * 16);
    if constexpr (kWords % 4 != 0) {
      words.vector[kWords / 4] = vcombine_s8(vld1_s8(a + kWords / 4 * 16), vdup_n_s8(0));
    }
    return words;
  }

  template <int kWord>
  inline __attribute__((always_inline)) void add(const int8x16_t (&w)[2], const Words& words) {
    int32x4_t(&sum)[2] = sums[kWord % kTokens];
    sum[0] = vdotq_laneq_s32(sum[0], w[0], words.vector[kWord / 4], kWord % 4);
    sum[1] = vdotq_laneq_s32(sum[1], w[1], words.vector[kWord / 4], kWord % 4);
  }
  template <int... kToken>
  inline __attribute__((always_inline)) void add_all(const StepCodes<kInt4>& w, const Words& words,
                                                     std::integer_sequence<int, kToken...>) {
    (add<kToken>(w.first, words), ...);
    (add<kTokens + kToken>(w.second, words), ...);
  }

  inline __attribute__((always_inline)) void step(const uint8_t*& codes, const int8_t*& a) {
    using Codes = StepCodes<kInt4>;
    const Codes w = Codes::load(codes);
    prefetch<Codes::kBytes, 2 * kTokens>(codes);
    codes += Codes::kBytes;
    add_all(w, load_words(a), std::make_integer_sequence<int, kTokens>{});
    a += 8 * kTokens;
  }
  void flush() {}
  inline __attribute__((always_inline)) Neon::Int total(int t) const {
    return {sums[t][0], sums[t][1]};
  }
};

template <int kTokens>
using DotsInt4 = Dots<true, kTokens>;
template <int kTokens>
using DotsInt8 = Dots<false, kTokens>;

}  // namespace

// The exact kernels have nothing to gain; neon_linear_kernels is there before any other object.
const LinearKernels dotprod_linear_kernels = {
    neon_linear_kernels.exact,
    {
        integer_kernel<Neon, DotsInt8>(TokenCounts<8>{}),
        integer_kernel<Neon, DotsInt4>(TokenCounts<8>{}),
    },
};

}  // namespace slicellm::cpu
