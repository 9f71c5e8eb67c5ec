#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/linear_layout.h"

// Brings activations into the tiles that the matrix kernels read. Included with them, once per
// instruction set, in an unnamed namespace; the results are the same for all of them.
namespace slicellm::cpu {
namespace {

// Calls function(first column, columns, padded columns) for each block of a row.
template <class Function>
inline void for_each_block(const LinearLayout& layout, Function function) {
  for (int64_t begin = 0; begin < layout.in; begin += layout.group) {
    const int64_t end = begin + layout.group < layout.in ? begin + layout.group : layout.in;
    for (int64_t k = begin; k < end; k += kMaxBlock) {
      const int columns = static_cast<int>(end - k < kMaxBlock ? end - k : kMaxBlock);
      function(k, columns, (columns + kStep - 1) / kStep * kStep);
    }
  }
}

inline void prepare_float(const LinearLayout& layout, const float* x, int tokens, int t,
                          std::byte* tile) {
  float* out = reinterpret_cast<float*>(tile) + t;
  for (int64_t k = 0; k < layout.in; ++k) out[k * tokens] = x[k];
}

inline void prepare_decoded(const LinearLayout& layout, const float* x, int tokens, int t,
                            std::byte* tile) {
  float* out = reinterpret_cast<float*>(tile) + t;
  for_each_block(layout, [&](int64_t first, int columns, int padded) {
    for (int k = 0; k < columns; ++k) out[k * tokens] = x[first + k];
    for (int k = columns; k < padded; ++k) out[k * tokens] = 0;
    out += int64_t{padded} * tokens;
  });
}

// Symmetric codes -127..127 of one block, rounded to nearest even, padded with zeros. A block with
// an infinity or NaN gets the scale NaN, so that it shows in the result.
struct QuantizedBlock {
  float scale;
  int32_t sum;
};

inline __attribute__((always_inline)) QuantizedBlock quantize_block(const float* x, int columns,
                                                                    int padded, int8_t* codes) {
  int32_t highest = 0;  // the largest absolute value, as bits: NaN > infinity > all numbers
  for (int k = 0; k < columns; ++k) {
    int32_t bits;
    __builtin_memcpy(&bits, x + k, 4);
    bits &= 0x7fffffff;
    highest = bits > highest ? bits : highest;
  }
  float peak;
  __builtin_memcpy(&peak, &highest, 4);
  constexpr int32_t kInfinity = 0x7f800000;
  if (highest >= kInfinity || peak < 1e-30f) {  // below that, 127 / peak would overflow
    for (int k = 0; k < padded; ++k) codes[k] = 0;
    return {highest >= kInfinity ? __builtin_nanf("") : 0.0f, 0};
  }
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float factor = 127.0f / peak;
  int32_t sum = 0;
  for (int k = 0; k < columns; ++k) {
    const float rounded = x[k] * factor + kRound;
    int32_t bits;
    __builtin_memcpy(&bits, &rounded, 4);
    // The low byte of the sum's bits is the code in two's complement.
    codes[k] = static_cast<int8_t>(bits);
    sum += bits - 0x4b400000;
  }
  for (int k = columns; k < padded; ++k) codes[k] = 0;
  return {peak / 127.0f, sum};
}

// Quantises one block and writes its words of kWord codes `stride` codes apart.
template <class Code, int kWord>
inline __attribute__((always_inline)) QuantizedBlock write_block(const float* x, int columns,
                                                                 int padded, Code* out,
                                                                 int64_t stride) {
  int8_t codes[kMaxBlock];
  const QuantizedBlock block = quantize_block(x, columns, padded, codes);
#pragma GCC unroll 16
  for (int k = 0; k < padded; k += kWord) {
    if constexpr (sizeof(Code) == 1) {
      __builtin_memcpy(out, codes + k, kWord);
    } else {  // even columns, then odd ones (see ActivationKind)
      const Code word[4] = {codes[k], codes[k + 2], codes[k + 1], codes[k + 3]};
      __builtin_memcpy(out, word, sizeof(word));
    }
    out += stride;
  }
  return block;
}

template <class Code, int kWord = 4>  // int8_t or int16_t
void prepare_integer(const LinearLayout& layout, const float* x, int tokens, int t,
                     std::byte* tile) {
  const int64_t stride = kWord * tokens;
  Code* out = reinterpret_cast<Code*>(tile) + t * kWord;
  float* scales = reinterpret_cast<float*>(tile + layout.act_scales_offset * tokens) + t;
  std::byte* sums = tile + layout.act_sums_offset * tokens + t * 4;
  for_each_block(layout, [&](int64_t first, int columns, int padded) {
    // The usual sizes are constants for the compiler.
    const auto write = [&](int count, int padded_count) __attribute__((always_inline)) {
      return write_block<Code, kWord>(x + first, count, padded_count, out, stride);
    };
    const QuantizedBlock block = columns == 32   ? write(32, 32)
                                 : columns == 64 ? write(64, 64)
                                                 : write(columns, padded);
    out += padded / kWord * stride;
    *scales = block.scale;
    scales += tokens;
    if (layout.compact) {
      const int32_t negative = -block.sum;
      __builtin_memcpy(sums, &negative, 4);
    } else {
      const float scaled = block.scale * static_cast<float>(block.sum);
      __builtin_memcpy(sums, &scaled, 4);
    }
    sums += tokens * 4;
  });
}

}  // namespace
}  // namespace slicellm::cpu
