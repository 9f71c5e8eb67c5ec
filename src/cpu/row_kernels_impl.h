#pragma once

// Norms and activation functions on one row; compiled once for each instruction set.

#include "cpu/row_kernels.h"
#include "cpu/vec.h"

namespace slicellm::cpu {
namespace {

inline float square_root(float x) { return __builtin_sqrtf(x); }

// Sum of term(x[i]) in an order that depends on `width` alone.
template <class Term>
inline float sum_row(const float* x, int64_t width, Term term) {
  Vec sum[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= width; i += 4 * kLanes) {
    for (int k = 0; k < 4; ++k) sum[k] += term(load(x + i + k * kLanes));
  }
  for (; i + kLanes <= width; i += kLanes) sum[0] += term(load(x + i));
  float total = sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3]));
  for (; i < width; ++i) total += term(splat(x[i]))[0];
  return total;
}

void rms_norm(const float* x, int64_t width, const float* weight, float eps, float* out) {
  const float squares = sum_row(x, width, [](Vec v) { return v * v; });
  const float factor = 1.0f / square_root(squares / static_cast<float>(width) + eps);
  for (int64_t i = 0; i < width; i += kLanes) {
    const int64_t rest = width - i;
    store_part(out + i, load_part(x + i, rest) * factor * load_part(weight + i, rest), rest);
  }
}

void layer_norm(const float* x, int64_t width, const float* weight, const float* bias, float eps,
                float* out) {
  const float mean = sum_row(x, width, [](Vec v) { return v; }) / static_cast<float>(width);
  const float squares = sum_row(x, width, [mean](Vec v) { return (v - mean) * (v - mean); });
  const float factor = 1.0f / square_root(squares / static_cast<float>(width) + eps);
  for (int64_t i = 0; i < width; i += kLanes) {
    const int64_t rest = width - i;
    const Vec normed = (load_part(x + i, rest) - mean) * factor;
    store_part(out + i,
               multiply_add(normed, load_part(weight + i, rest), load_part(bias + i, rest)), rest);
  }
}

// x * sigmoid(z)
inline Vec times_sigmoid(Vec x, Vec z) { return x / (exponential(-z) + 1.0f); }

void silu_gate(const float* gate, const float* up, int64_t count, float* out) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const Vec g = load_part(gate + i, count - i);
    store_part(out + i, times_sigmoid(g, g) * load_part(up + i, count - i), count - i);
  }
}

// x/2 * (1 + tanh(u)) = x * sigmoid(2u) with u = sqrt(2/pi) * (x + 0.044715 x^3).
void gelu_tanh(const float* x, int64_t count, float* out) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const Vec v = load_part(x + i, count - i);
    const Vec u = v * multiply_add(v * v, splat(0.044715f), splat(1.0f));
    store_part(out + i, times_sigmoid(v, u * 1.59576912f), count - i);
  }
}

constexpr RowKernelTable kRowKernelTable = {rms_norm, layer_norm, silu_gate, gelu_tanh};

}  // namespace
}  // namespace slicellm::cpu
