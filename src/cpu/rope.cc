#include "cpu/rope.h"

#include <algorithm>

namespace slicellm::cpu {
namespace {

// Pairs (i, i + pairs).
void rotate_half(const float* in, int32_t pairs, const float* cos, const float* sin, float scale,
                 float* out) {
  for (int32_t i = 0; i < pairs; ++i) {
    const float a = in[i], b = in[i + pairs];
    out[i] = (a * cos[i] - b * sin[i]) * scale;
    out[i + pairs] = (b * cos[i] + a * sin[i]) * scale;
  }
}

// Pairs (2i, 2i + 1).
void rotate_interleaved(const float* in, int32_t pairs, const float* cos, const float* sin,
                        float scale, float* out) {
  for (int32_t i = 0; i < pairs; ++i) {
    const float a = in[2 * i], b = in[2 * i + 1];
    out[2 * i] = (a * cos[i] - b * sin[i]) * scale;
    out[2 * i + 1] = (b * cos[i] + a * sin[i]) * scale;
  }
}

}  // namespace

RopePosition rope_position(RopeStyle style, int32_t index, int32_t prompt_len) {
  if (style != RopeStyle::glm_2d || index < prompt_len - 1) return {index, 0};
  const int32_t mask = std::max(prompt_len - 2, 0);
  return {mask, index - mask};
}

void rotate_head(const float* in, int32_t head_dim, const RopeTable& table, RopePosition where,
                 float scale, float* out) {
  const int32_t dim = table.rotary_dim;
  const int32_t pairs = dim / 2;
  const auto rotate = table.style == RopeStyle::interleaved ? rotate_interleaved : rotate_half;
  const auto angles = [&](int32_t position) { return static_cast<size_t>(position) * pairs; };
  const size_t row = angles(where.position);
  rotate(in, pairs, table.cos.data() + row, table.sin.data() + row, scale, out);
  int32_t done = dim;
  if (table.style == RopeStyle::glm_2d) {
    const size_t block_row = angles(where.block);
    rotate(in + dim, pairs, table.cos.data() + block_row, table.sin.data() + block_row, scale,
           out + dim);
    done = 2 * dim;
  }
  for (int32_t i = done; i < head_dim; ++i) out[i] = in[i] * scale;
}

}  // namespace slicellm::cpu
