#pragma once

#include <cstdint>

#include "cuda/kernel.h"
#include "cuda/linear_layout.h"
#include "cuda/ptx.h"

// How a lane turns its share of packed weights (linear_layout.h) into operands of mma m16n8k16. One
// type a weight kind; the kernels are templates over them.
namespace slicellm::cuda {

__device__ inline __half2 as_half2(uint32_t word) {
  __half2 h;
  __builtin_memcpy(&h, &word, 4);
  return h;
}

__device__ inline uint32_t as_word(__half2 h) {
  uint32_t word;
  __builtin_memcpy(&word, &h, 4);
  return word;
}

// Scale and zero, and the offset or 0, of rows g (x) and g + 8 (y) in one group: words as packed.
struct GroupScales {
  uint2 scales, offsets;
};

// One row's values, twice each.
struct RowScales {
  __half2 scale, zero, offset;  // zero = -(1024 + zero)

  __device__ RowScales(uint32_t scale_word, uint32_t offset_word)
      : scale(__half2half2(__low2half(as_half2(scale_word)))),
        zero(__half2half2(__high2half(as_half2(scale_word)))),
        offset(__half2half2(__low2half(as_half2(offset_word)))) {}

  // The weights of 1024 + code, exact but for the last step.
  __device__ uint32_t decode(uint32_t codes) const {
    return as_word(__hfma2(__hadd2(as_half2(codes), zero), scale, offset));
  }
};

// A code ORed into the low bits of the float16 1024 (0x6400) makes 1024 + code; into the bits from
// 4 up, 1024 + 16 * code, of which a sixteenth is 64 + code.
struct Int4Weights {
  using Element = __half;
  static constexpr bool kScaled = true;
  static constexpr int kLoads = 1;  // of 16 bytes a lane, for a unit

  // Operands of the two matrix steps of one block of the unit.
  __device__ static void decode(const uint4 (&unit)[kLoads], int block, const GroupScales& group,
                                uint32_t (&a)[2][4]) {
    decode_row<0>(block == 0 ? unit[0].x : unit[0].z, {group.scales.x, group.offsets.x}, a);
    decode_row<1>(block == 0 ? unit[0].y : unit[0].w, {group.scales.y, group.offsets.y}, a);
  }

 private:
  static constexpr int kAndOr = (0xf0 & 0xcc) | 0xaa;

  template <int kRow>
  __device__ static void decode_row(uint32_t codes, const RowScales& row, uint32_t (&a)[2][4]) {
    const __half2 high_zero = __hadd2(row.zero, __float2half2_rn(960.0f));  // -(64 + zero)
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      const uint32_t low = lop3<kAndOr>(codes, 0x000f000f, 0x64006400);
      const uint32_t high = lop3<kAndOr>(codes, 0x00f000f0, 0x64006400);
      a[step][kRow] = row.decode(low);
      const __half2 code = __hfma2(as_half2(high), __float2half2_rn(0.0625f), high_zero);
      a[step][kRow + 2] = as_word(__hfma2(code, row.scale, row.offset));
      codes >>= 8;
    }
  }
};

struct Int8Weights {
  using Element = __half;
  static constexpr bool kScaled = true;
  static constexpr int kLoads = 2;

  __device__ static void decode(const uint4 (&unit)[kLoads], int block, const GroupScales& group,
                                uint32_t (&a)[2][4]) {
    const uint4 codes = unit[block];
    const RowScales first(group.scales.x, group.offsets.x);
    const RowScales second(group.scales.y, group.offsets.y);
    const uint32_t words[2][2] = {{codes.x, codes.y}, {codes.z, codes.w}};
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      // Two bytes, each below the high byte of 1024.
      a[step][0] = first.decode(__byte_perm(words[0][step], 0x64646464u, 0x4140));
      a[step][2] = first.decode(__byte_perm(words[0][step], 0x64646464u, 0x4342));
      a[step][1] = second.decode(__byte_perm(words[1][step], 0x64646464u, 0x4140));
      a[step][3] = second.decode(__byte_perm(words[1][step], 0x64646464u, 0x4342));
    }
  }
};

template <class ElementType>
struct SixteenBitWeights {
  using Element = ElementType;
  static constexpr bool kScaled = false;
  static constexpr int kLoads = 4;

  __device__ static void decode(const uint4 (&unit)[kLoads], int block, const GroupScales&,
                                uint32_t (&a)[2][4]) {
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      const uint4 v = unit[2 * block + step];
      a[step][0] = v.x, a[step][1] = v.y, a[step][2] = v.z, a[step][3] = v.w;
    }
  }
};

using Float16Weights = SixteenBitWeights<__half>;
using Bfloat16Weights = SixteenBitWeights<__nv_bfloat16>;

// Matrix step 0 or 1 of a block, whose 8 columns of a token are `x`.
template <class Weights>
__device__ inline void multiply_step(const uint4& x, int step, const uint32_t (&a)[4],
                                     float (&sums)[4]) {
  const uint32_t b[2] = {step == 0 ? x.x : x.z, step == 0 ? x.y : x.w};
  mma_m16n8k16<typename Weights::Element>(sums, a, b);
}

}  // namespace slicellm::cuda
