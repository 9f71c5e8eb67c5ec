#pragma once

// The inner loops of attention; compiled once for each instruction set.
//
// A score is one chain of multiply-adds over the head's dimensions, a weighted value one chain over
// the tokens, each in its own vector lane. How many rows and panels are worked on together changes
// how often K and V are loaded, never a result. Tokens that a row does not see get weight 0.

#include <type_traits>

#include "cpu/attention_kernels.h"
#include "cpu/vec.h"

namespace slicellm::cpu {
namespace {

constexpr int kVecs = kPanel / kLanes;  // vectors in a panel
#if defined(__aarch64__)
constexpr int kAccumulators = 24;     // vectors that may be kept in registers as sums
constexpr int kFewAccumulators = 16;  // and for few rows, enough of them to hide the latency
#else
constexpr int kAccumulators = 12;
constexpr int kFewAccumulators = 8;
#endif
constexpr int kMaxRows = kAccumulators / kVecs;

// acc[r][v] += a[r][i] * b[v][i], i < count, where b holds `panels` matrices of kPanel columns.
template <int rows, int panels, class T>
inline __attribute__((always_inline)) void multiply_panels(const float* a, int a_stride,
                                                           const T* const* b, int b_stride,
                                                           int count,
                                                           Vec (&acc)[rows][panels * kVecs]) {
  constexpr int vecs = panels * kVecs;
  for (int i = 0; i < count; ++i) {
    Vec column[vecs];
#pragma GCC unroll 16
    for (int v = 0; v < vecs; ++v) {
      column[v] = load(b[v / kVecs] + i * b_stride + v % kVecs * kLanes);
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const Vec factor = splat(a[r * a_stride + i]);
#pragma GCC unroll 16
      for (int v = 0; v < vecs; ++v) acc[r][v] = multiply_add(factor, column[v], acc[r][v]);
    }
  }
}

// Scores of the tokens of `panels` panels.
template <int rows, int panels, class T>
inline void score_panels(const SplitTask& task, int panel) {
  const T* keys[panels];
  for (int p = 0; p < panels; ++p) keys[p] = static_cast<const T*>(task.keys[panel + p]);
  Vec acc[rows][panels * kVecs] = {};
  multiply_panels<rows, panels, T>(task.queries, task.head_dim, keys, task.key_stride,
                                   task.head_dim, acc);
  if constexpr (std::is_same_v<T, int8_t>) {
#pragma GCC unroll 16
    for (int v = 0; v < panels * kVecs; ++v) {
      const Vec scales = load(task.key_scales[panel + v / kVecs] + v % kVecs * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) acc[r][v] *= scales;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
    float* out = task.scores + r * kSplitTokens + panel * kPanel;
#pragma GCC unroll 16
    for (int v = 0; v < panels * kVecs; ++v) store(out + v * kLanes, acc[r][v]);
  }
}

// `panels` panels of the weighted sum of values, from dimension `first` on.
template <int rows, int panels, class T>
inline void value_panels(const SplitTask& task, int first) {
  Vec acc[rows][panels * kVecs] = {};
  for (int panel = task.any_first / kPanel; panel * kPanel < task.any_last; ++panel) {
    const T* values[panels];
    for (int p = 0; p < panels; ++p) {
      values[p] = static_cast<const T*>(task.values[panel]) + first + p * kPanel;
    }
    const int tokens = task.any_last - panel * kPanel;
    multiply_panels<rows, panels, T>(task.scores + panel * kPanel, kSplitTokens, values,
                                     task.head_dim, tokens < kPanel ? tokens : kPanel, acc);
  }
  const int stride = (task.head_dim + kPanel - 1) / kPanel * kPanel;
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
    float* out = task.out + r * stride + first;
#pragma GCC unroll 16
    for (int v = 0; v < panels * kVecs; ++v) store(out + v * kLanes, acc[r][v]);
  }
}

// 0, 1, 2, ...
inline Vec lane_numbers() {
  Vec v;
  for (int i = 0; i < kLanes; ++i) v[i] = static_cast<float>(i);
  return v;
}

// Turns a row's scores into weights exp(score - max), 0 where the row does not see.
inline void softmax_row(const SplitTask& task, int row) {
  constexpr float kMinusInfinity = -__builtin_inff();
  float* scores = task.scores + row * kSplitTokens;
  const int begin = task.any_first / kPanel * kPanel;
  const int end = (task.any_last + kPanel - 1) / kPanel * kPanel;
  const float first = static_cast<float>(task.first[row]);
  const float last = static_cast<float>(task.last[row]);
  if (first >= last) {
    for (int i = begin; i < end; ++i) scores[i] = 0;
    task.max[row] = kMinusInfinity;
    task.sum[row] = 0;
    return;
  }
  const Vec numbers = lane_numbers();
  Vec max = splat(kMinusInfinity);
  for (int i = begin; i < end; i += kLanes) {
    const Vec number = numbers + static_cast<float>(i);
    const auto visible = (number >= first) & (number < last);
    const Vec score = visible ? load(scores + i) : splat(kMinusInfinity);
    max = maximum(max, score);
    store(scores + i, score);
  }
  const float top = max_lane(max);
  Vec sum = {};
  for (int i = begin; i < end; i += kLanes) {
    const Vec weight = exponential(load(scores + i) - top);
    sum += weight;
    store(scores + i, weight);
  }
  task.max[row] = top;
  task.sum[row] = sum_lanes(sum);
}

// Multiplies a row's weights with the scales of the values that they meet.
inline void scale_weights(const SplitTask& task, int row) {
  float* weights = task.scores + row * kSplitTokens;
  for (int panel = task.any_first / kPanel; panel * kPanel < task.any_last; ++panel) {
    for (int v = 0; v < kVecs; ++v) {
      float* at = weights + panel * kPanel + v * kLanes;
      store(at, load(at) * load(task.value_scales[panel] + v * kLanes));
    }
  }
}

template <int rows, class T>
void attend_rows(const SplitTask& task) {
  // Few rows work on more panels at once.
  constexpr int kMostWide = kFewAccumulators / (rows * kVecs);
  constexpr int kWide = kMostWide >= 4 ? 4 : kMostWide >= 2 ? 2 : 1;
  const int panels = (task.any_last + kPanel - 1) / kPanel;
  int panel = task.any_first / kPanel;
  for (; panel + kWide <= panels; panel += kWide) score_panels<rows, kWide, T>(task, panel);
  for (; panel < panels; ++panel) score_panels<rows, 1, T>(task, panel);
  for (int r = 0; r < rows; ++r) {
    softmax_row(task, r);
    if constexpr (std::is_same_v<T, int8_t>) scale_weights(task, r);
  }
  int first = 0;
  for (; first + kWide * kPanel <= task.head_dim; first += kWide * kPanel) {
    value_panels<rows, kWide, T>(task, first);
  }
  for (; first < task.head_dim; first += kPanel) value_panels<rows, 1, T>(task, first);
}

template <class T>
void attend(const SplitTask& task) {
  switch (task.rows) {
    case 1:
      return attend_rows<1, T>(task);
    case 2:
      return attend_rows<2, T>(task);
    case 3:
      return attend_rows<3, T>(task);
#if defined(__AVX2__) || defined(__aarch64__)
    case 4:
      return attend_rows<4, T>(task);
    case 5:
      return attend_rows<5, T>(task);
    case 6:
      return attend_rows<6, T>(task);
#endif
#if defined(__AVX512F__)
    case 7:
      return attend_rows<7, T>(task);
    case 8:
      return attend_rows<8, T>(task);
    case 9:
      return attend_rows<9, T>(task);
    case 10:
      return attend_rows<10, T>(task);
    case 11:
      return attend_rows<11, T>(task);
    case 12:
      return attend_rows<12, T>(task);
#endif
  }
}

void merge(const PartialRow& into, const PartialRow& part, int head_dim) {
  if (*part.sum == 0) return;  // sees nothing there
  if (*into.sum == 0) {
    for (int i = 0; i < head_dim; ++i) into.values[i] = part.values[i];
    *into.max = *part.max;
    *into.sum = *part.sum;
    return;
  }
  const float max = *into.max > *part.max ? *into.max : *part.max;
  const float old_factor = exponential(splat(*into.max - max))[0];
  const float new_factor = exponential(splat(*part.max - max))[0];
  for (int i = 0; i < head_dim; ++i) {
    into.values[i] = into.values[i] * old_factor + part.values[i] * new_factor;
  }
  *into.max = max;
  *into.sum = *into.sum * old_factor + *part.sum * new_factor;
}

// Rounds to nearest even by adding a number whose last mantissa bit is the half's last bit.
inline uint16_t half_of(float x) {
  constexpr float kLargest = 65504.0f;
  const float bounded = x > kLargest ? kLargest : x < -kLargest ? -kLargest : x;
  uint32_t u;
  __builtin_memcpy(&u, &bounded, sizeof(u));
  const uint32_t sign = u >> 16 & 0x8000;
  u &= 0x7fffffff;
  if (u > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);  // NaN
  if (u < 0x38800000) {  // below 2^-14: subnormal, in units of 2^-24
    float magnitude;
    __builtin_memcpy(&magnitude, &u, sizeof(u));
    magnitude += 0.5f;  // 2^-24 is the last mantissa bit of numbers in [0.5, 1)
    __builtin_memcpy(&u, &magnitude, sizeof(u));
    return static_cast<uint16_t>(sign | (u - 0x3f000000));
  }
  u += 0xfff + (u >> 13 & 1);
  return static_cast<uint16_t>(sign | (u - 0x38000000) >> 13);
}

void to_half(const float* x, int64_t count, uint16_t* out) {
  int64_t i = 0;
#if defined(__AVX2__)
  for (; i + 8 <= count; i += 8) {
    // The operand that may be NaN comes second: min and max return it then.
    const __m256 below = _mm256_min_ps(_mm256_set1_ps(65504.0f), _mm256_loadu_ps(x + i));
    const __m256 bounded = _mm256_max_ps(_mm256_set1_ps(-65504.0f), below);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i),
                     _mm256_cvtps_ph(bounded, _MM_FROUND_TO_NEAREST_INT));
  }
#elif defined(__aarch64__)
  for (; i + 4 <= count; i += 4) {
    const float32x4_t below = vminq_f32(vld1q_f32(x + i), vdupq_n_f32(65504.0f));  // keeps NaN
    const float32x4_t bounded = vmaxq_f32(below, vdupq_n_f32(-65504.0f));
    vst1_u16(out + i, vreinterpret_u16_f16(vcvt_f16_f32(bounded)));
  }
#endif
  for (; i < count; ++i) out[i] = half_of(x[i]);
}

uint16_t to_int8(const float* x, int64_t count, int8_t* out) {
  constexpr float kMostScale = 515.5f;  // 127 times it is a half
  float largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const float magnitude = x[i] < 0 ? -x[i] : x[i];
    largest = magnitude > largest ? magnitude : largest;
  }
  const float wanted = largest / 127.0f;
  const uint16_t scale = half_of(wanted < kMostScale ? wanted : kMostScale);
  const uint16_t lanes[kLanes] = {scale};
  const float step = load(lanes)[0];
  constexpr float kRound = 0x1.8p23f;  // added and taken away again it rounds to nearest even
  for (int64_t i = 0; i < count; ++i) {
    float code = step > 0 ? x[i] / step : 0.0f;
    code = code > -127.0f ? code : -127.0f;  // NaN as well
    code = code < 127.0f ? code : 127.0f;
    out[i] = static_cast<int8_t>(static_cast<int32_t>((code + kRound) - kRound));
  }
  return scale;
}

constexpr AttentionKernels kAttentionKernelTable = {
    kMaxRows, attend<uint16_t>, attend<float>, attend<int8_t>, merge, to_half, to_int8};

}  // namespace
}  // namespace slicellm::cpu
