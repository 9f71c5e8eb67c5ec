#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "cpu/linear_layout.h"
#include "cpu/linear_prepare.h"

// The matrix kernels, written once over the vector operations `S` of an instruction set. Included
// by one source file per instruction set; everything is in an unnamed namespace so that code for
// one instruction set can never be linked in for another.
//
// Each output is a chain of operations in the order of the columns, the same for every tile size.
namespace slicellm::cpu {
namespace {

inline const float* floats(const void* p) { return static_cast<const float*>(p); }

// Scales and zeros of one group of a panel.
template <class S, bool kCompact, bool kSigned>
struct GroupScales;

template <class S, bool kSigned>
struct GroupScales<S, true, kSigned> {
  typename S::Float scale;
  typename S::Int zero;  // one 16-bit pair (zero, 0) per row; a number if kSigned

  static GroupScales load(const LinearLayout& layout, const uint8_t* section, int group) {
    const int at = group * S::kRows;
    const uint8_t* zeros = section + layout.zeros_offset + at;
    if constexpr (kSigned) {
      return {S::load_half(section + at * 2), S::load_signed_bytes(zeros)};
    } else {
      return {S::load_half(section + at * 2), S::load_bytes(zeros)};
    }
  }
};

template <class S, bool kSigned>
struct GroupScales<S, false, kSigned> {
  typename S::Float scale, minimum;

  static GroupScales load(const LinearLayout& layout, const uint8_t* section, int group) {
    const int at = group * S::kRows * 4;
    return {S::load_float(section + at), S::load_float(section + layout.zeros_offset + at)};
  }
};

// Asks for the weights that come 4 KiB later, where `kWork` vector operations on kBytes of them
// leave the time; with less work the processor's own prefetching is faster undisturbed.
template <int kBytes, int kWork>
inline __attribute__((always_inline)) void prefetch(const void* weights) {
  if constexpr (kWork * 64 / kBytes >= 8) {
    for (int line = 0; line < kBytes; line += 64) {
      __builtin_prefetch(static_cast<const std::byte*>(weights) + 4096 + line);
    }
  }
}

// The dot products of a block of columns, for all rows of a panel and kTokens tokens, made of a
// `Dot` for each token. Instruction sets that combine tokens have their own instead.
template <class Dot, int kTokens>
struct TokenDots {
  static constexpr CodeOrder kOrder = CodeOrder::words;
  static constexpr bool kSigned = false;
  static constexpr ActivationKind kActivation = Dot::kActivation;
  Dot dots[kTokens];

  // Eight columns: the weights meet all tokens of the tile.
  inline __attribute__((always_inline)) void step(const uint8_t*& codes, const int8_t*& a) {
    typename Dot::Word w[2];
    Dot::load(codes, w);
    prefetch<Dot::kCodeBytes, 2 * kTokens>(codes);
    codes += Dot::kCodeBytes;
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) dots[t].add(w[0], a + t * Dot::kWordBytes);
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) dots[t].add(w[1], a + (kTokens + t) * Dot::kWordBytes);
    a += 2 * kTokens * Dot::kWordBytes;
  }
  // Comes after at most four steps.
  inline __attribute__((always_inline)) void flush() {
    for (Dot& dot : dots) dot.flush();
  }
  inline __attribute__((always_inline)) auto total(int t) const { return dots[t].total(); }
};

constexpr int kChunkColumns = 4 * kStep;

// Four steps, after which a sum may have to be flushed.
template <class Dots>
inline __attribute__((always_inline)) void integer_chunk(const uint8_t*& codes, const int8_t*& a,
                                                         Dots& dots) {
#pragma GCC unroll 4
  for (int step = 0; step < 4; ++step) dots.step(codes, a);
}

// Int weights, quantised activations.
template <class S, class Dots, bool kCompact, int kTokens>
void integer_tile(const LinearLayout& layout, const std::byte* panel, const std::byte* tile,
                  float* out, int64_t out_stride) {
  using Float = typename S::Float;
  auto codes = reinterpret_cast<const uint8_t*>(panel);
  const auto* a = reinterpret_cast<const int8_t*>(tile);
  const float* a_scale = floats(tile + layout.act_scales_offset * kTokens);
  const std::byte* a_sum = tile + layout.act_sums_offset * kTokens;
  Float sums[kTokens];
#pragma GCC unroll 16
  for (int t = 0; t < kTokens; ++t) sums[t] = S::zero();

  using Scales = GroupScales<S, kCompact, Dots::kSigned>;
  // Adds a block's dot products up, scaled.
  const auto fold = [&](const Scales& group, const Dots& dots) __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) {
      typename S::Int dot = dots.total(t);
      if constexpr (kCompact) {
        int32_t negative_sum;
        __builtin_memcpy(&negative_sum, a_sum + t * 4, 4);
        dot = S::add_pairs(dot, group.zero, negative_sum);
      }
      const Float scale = S::mul(group.scale, S::broadcast(a_scale[t]));
      sums[t] = S::fma(S::to_float(dot), scale, sums[t]);
      if constexpr (!kCompact) {
        sums[t] = S::fma(group.minimum, S::broadcast(floats(a_sum)[t]), sums[t]);
      }
    }
    a_scale += kTokens;
    a_sum += kTokens * 4;
  };

  // Groups of 32 columns, the usual ones of int4, are a block of one chunk each: knowing that is
  // worth a tenth to a sixth of the time.
  const bool chunks =
      layout.group <= kChunkColumns && layout.padded_in == kChunkColumns * layout.groups;
  const uint8_t* block_steps = layout.block_steps;
  const uint8_t* const last_block = block_steps + layout.blocks;
  for (int64_t left = layout.groups; left > 0; left -= layout.section_groups) {
    const uint8_t* section = codes;
    codes += layout.codes_offset;
    const int groups =
        static_cast<int>(left < layout.section_groups ? left : layout.section_groups);
    if (chunks) {
      for (int g = 0; g < groups; ++g) {
        const Scales group = Scales::load(layout, section, g);
        Dots dots;
        integer_chunk(codes, a, dots);
        fold(group, dots);
      }
      continue;
    }
    for (int g = 0; g < groups; ++g) {
      const Scales group = Scales::load(layout, section, g);
      int64_t blocks = layout.blocks_per_group;
      if (blocks > last_block - block_steps) blocks = last_block - block_steps;
      for (int64_t b = 0; b < blocks; ++b) {
        Dots dots;
        int steps = *block_steps++;
        for (; steps >= 4; steps -= 4) {
          integer_chunk(codes, a, dots);
          dots.flush();
        }
        for (; steps > 0; --steps) dots.step(codes, a);
        fold(group, dots);
      }
    }
  }
#pragma GCC unroll 16
  for (int t = 0; t < kTokens; ++t) S::store(out + t * out_stride, sums[t]);
}

// Int weights decoded to float32, float32 activations. A block's sum is over (code - zero) * x,
// where code - zero is exact, and is scaled at its end.
template <class S, bool kInt4, bool kCompact, int kTokens>
void decoded_tile(const LinearLayout& layout, const std::byte* panel, const std::byte* tile,
                  float* out, int64_t out_stride) {
  using Float = typename S::Float;
  using Int = typename S::Int;
  auto codes = reinterpret_cast<const uint8_t*>(panel);
  const float* x = floats(tile);
  Float sums[kTokens];
#pragma GCC unroll 16
  for (int t = 0; t < kTokens; ++t) sums[t] = S::zero();

  const uint8_t* block_steps = layout.block_steps;
  const uint8_t* const last_block = block_steps + layout.blocks;
  const uint8_t* section = nullptr;
  for (int g = layout.section_groups; block_steps != last_block; ++g) {
    if (g == layout.section_groups) {
      g = 0;
      section = codes;
      codes += layout.codes_offset;
    }
    const auto group = GroupScales<S, kCompact, false>::load(layout, section, g);
    int64_t blocks = layout.blocks_per_group;
    if (blocks > last_block - block_steps) blocks = last_block - block_steps;
    for (int64_t b = 0; b < blocks; ++b) {
      Float block_sums[kTokens];
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t) block_sums[t] = S::zero();
      for (int steps = *block_steps++; steps > 0; --steps) {
        const Int first = S::load_codes(codes);
        const Int second = kInt4 ? first : S::load_codes(codes + S::kRows * 4);
        codes += S::kRows * (kInt4 ? 4 : 8);
        const auto column = [&](Int code) __attribute__((always_inline)) {
          Float w;
          if constexpr (kCompact) {
            w = S::to_float(S::sub(code, group.zero));
          } else {
            w = S::fma(S::to_float(code), group.scale, group.minimum);
          }
#pragma GCC unroll 16
          for (int t = 0; t < kTokens; ++t) {
            block_sums[t] = S::fma(w, S::broadcast(x[t]), block_sums[t]);
          }
          x += kTokens;
        };
        constexpr int kMask = kInt4 ? 0xf : 0xff;
        constexpr int kSecondShift = kInt4 ? 4 : 0;
        column(S::template field<0, kMask>(first));
        column(S::template field<8, kMask>(first));
        column(S::template field<16, kMask>(first));
        column(S::template field<24, kMask>(first));
        column(S::template field<0 + kSecondShift, kMask>(second));
        column(S::template field<8 + kSecondShift, kMask>(second));
        column(S::template field<16 + kSecondShift, kMask>(second));
        column(S::template field<24 + kSecondShift, kMask>(second));
      }
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t) {
        if constexpr (kCompact) {
          sums[t] = S::fma(block_sums[t], group.scale, sums[t]);
        } else {
          sums[t] = S::add(block_sums[t], sums[t]);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int t = 0; t < kTokens; ++t) S::store(out + t * out_stride, sums[t]);
}

// Float weights and activations: sums over 256 columns, then a sum of those, so that rounding
// errors do not grow with the width.
template <class S, WeightKind kKind, int kVectors, int kTokens>
void float_tile(const LinearLayout& layout, const std::byte* panel, const std::byte* tile,
                float* out, int64_t out_stride) {
  using Float = typename S::Float;
  constexpr int64_t kColumns = 256;
  constexpr int64_t kVectorBytes = S::kRows * (kKind == WeightKind::float32 ? 4 : 2);
  const float* x = floats(tile);
  Float totals[kTokens][kVectors];
  for (auto& total : totals) {
    for (Float& vector : total) vector = S::zero();
  }
  for (int64_t left = layout.in; left > 0; left -= kColumns) {
    Float sums[kTokens][kVectors];
    for (auto& sum : sums) {
      for (Float& vector : sum) vector = S::zero();
    }
    const int64_t columns = left < kColumns ? left : kColumns;
    for (int64_t k = 0; k < columns; ++k) {
      Float w[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const std::byte* from = panel + v * kVectorBytes;
        if constexpr (kKind == WeightKind::float32) {
          w[v] = S::load_float(from);
        } else if constexpr (kKind == WeightKind::float16) {
          w[v] = S::load_half(from);
        } else {
          w[v] = S::load_bfloat16(from);
        }
      }
      prefetch<kVectors * kVectorBytes, kVectors * kTokens>(panel);
      panel += kVectors * kVectorBytes;
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t) {
        const Float value = S::broadcast(x[t]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[t][v] = S::fma(w[v], value, sums[t][v]);
      }
      x += kTokens;
    }
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) {
      for (int v = 0; v < kVectors; ++v) totals[t][v] = S::add(totals[t][v], sums[t][v]);
    }
  }
#pragma GCC unroll 16
  for (int t = 0; t < kTokens; ++t) {
    for (int v = 0; v < kVectors; ++v) {
      S::store(out + t * out_stride + v * S::kRows, totals[t][v]);
    }
  }
}

// ---- tables: the kernels of one kind of weights for tiles of 1 to sizeof...(kTokens) tokens ----

constexpr PrepareToken prepare_for(ActivationKind activation) {
  switch (activation) {
    case ActivationKind::int16:
      return prepare_integer<int16_t, 4>;
    case ActivationKind::int8_steps:
      return prepare_integer<int8_t, 8>;
    default:
      return prepare_integer<int8_t, 4>;
  }
}

template <class S, template <int> class Dots, int... kTokens>
constexpr LinearKernel integer_kernel(std::integer_sequence<int, kTokens...>) {
  return {Dots<1>::kActivation,
          Dots<1>::kOrder,
          Dots<1>::kSigned,
          S::kRows,
          sizeof...(kTokens),
          {{integer_tile<S, Dots<kTokens + 1>, false, kTokens + 1>...},
           {integer_tile<S, Dots<kTokens + 1>, true, kTokens + 1>...}},
          prepare_for(Dots<1>::kActivation)};
}

template <class S, bool kInt4, int... kTokens>
constexpr LinearKernel decoded_kernel(std::integer_sequence<int, kTokens...>) {
  return {ActivationKind::float32,
          CodeOrder::words,
          false,
          S::kRows,
          sizeof...(kTokens),
          {{decoded_tile<S, kInt4, false, kTokens + 1>...},
           {decoded_tile<S, kInt4, true, kTokens + 1>...}},
          prepare_decoded};
}

template <class S, WeightKind kKind, int kVectors, int... kTokens>
constexpr LinearKernel float_kernel(std::integer_sequence<int, kTokens...>) {
  return {ActivationKind::float32,
          CodeOrder::words,
          false,
          S::kRows * kVectors,
          sizeof...(kTokens),
          {{float_tile<S, kKind, kVectors, kTokens + 1>...}, {}},
          prepare_float};
}

template <int kTokens>
using TokenCounts = std::make_integer_sequence<int, kTokens>;

}  // namespace
}  // namespace slicellm::cpu
