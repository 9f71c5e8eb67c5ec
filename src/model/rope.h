#pragma once

#include <cstdint>

#include "slicellm/format.h"
#include "slicellm/ops.h"

// Rotary position embeddings (Su et al., "RoFormer", 2021) and the variants of it that model
// configurations name. All of them end in one table of cosines and sines per position.
namespace slicellm {

enum class RopeScaling {
  none,
  linear,   // positions divided by `factor` (position interpolation, Chen et al. 2023)
  dynamic,  // NTK-aware base that grows with the length beyond the trained context
  llama3,   // Llama 3.1: low frequencies divided, high ones kept, smooth in between
  yarn,     // YaRN (Peng et al. 2023), attention factor included
};

struct RopeParameters {
  RopeStyle style = RopeStyle::half;
  int32_t rotary_dim = 0;
  double theta = 10000;  // base
  RopeScaling scaling = RopeScaling::none;
  double factor = 1;
  double original_positions = 0;                     // trained context (dynamic, llama3, yarn)
  double low_freq_factor = 1, high_freq_factor = 4;  // llama3
  double beta_fast = 32, beta_slow = 1;              // yarn
  bool truncate = true;                              // yarn: round the correction range outwards
  double attention_factor = 1;                       // yarn: multiplies cosines and sines
};

// Reads theta and the scaling from "rope_theta" and "rope_scaling.*", or from "rope_parameters.*",
// where newer configurations have both. `max_positions` is the configuration's
// max_position_embeddings; it becomes factor * original context where the variant stretches it.
// Throws Error(unsupported) for variants not listed above, Error(format) for absurd values.
void read_rope(const Config& config, RopeParameters& rope, int32_t& max_positions);

// Computes rows up to `positions` in double precision, keeping those that are already there.
//
// `dynamic` in transformers derives the base from the length of the sequence so far, so its result
// depends on how a prompt was cut into passes. Here position p always uses the base for length
// p + 1: equal to transformers up to the trained context (where the base does not change), and
// equal beyond it when transformers decodes token by token; and independent of any schedule.
void extend_rope_table(const RopeParameters& rope, int32_t positions, RopeTable& table);

}  // namespace slicellm
