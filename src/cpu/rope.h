#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include "slicellm/ops.h"

namespace slicellm::cpu {

// The table itself, read in place.
class CpuRope : public PackedRope {
 public:
  explicit CpuRope(std::shared_ptr<const RopeTable> table) : table_(std::move(table)) {}
  const RopeTable& table() const { return *table_; }

 private:
  std::shared_ptr<const RopeTable> table_;
};

// Where a token sits for the rotation. `block` is used by glm_2d alone.
struct RopePosition {
  int32_t position = 0;
  int32_t block = 0;
};

// Position of token `index` of a task whose prompt has `prompt_len` tokens. ChatGLM-6B (its
// modelling code, get_position_ids) counts positions over the context and stays at [gMASK], the
// last but one prompt token, from the last prompt token on; the block position is 0 over the
// context and counts 1, 2, ... from there.
RopePosition rope_position(RopeStyle style, int32_t index, int32_t prompt_len);

// out[head_dim] = scale * rotated(in[head_dim]); out may be in. Dimensions beyond the rotated ones
// are scaled only.
void rotate_head(const float* in, int32_t head_dim, const RopeTable& table, RopePosition where,
                 float scale, float* out);

}  // namespace slicellm::cpu
