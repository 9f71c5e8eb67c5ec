#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "benchmark/roofline/limits.h"
#include "slicellm/dtype.h"

// The work of one step, by arithmetic alone: what each op has to read and to compute.
namespace slicellm::roofline {

struct ModelShape {
  const char* name;
  int64_t hidden, inner, layers, heads, kv_heads, vocabulary;

  int64_t head_dim() const { return hidden / heads; }
  int64_t qkv_width() const { return head_dim() * (heads + 2 * kv_heads); }
};
// Of Qwen2.5-0.5B with 32,000 words, TinyLlama-1.1B. Throws Error(invalid_argument) for others.
const ModelShape& model_shape(const std::string& name);

// One matrix product of a model, as the forward pass calls it.
struct LinearShape {
  const char* name;
  int64_t out, in;
  bool normed, gated;
  int64_t copies;  // calls of a step

  double weights() const { return static_cast<double>(out) * static_cast<double>(in); }
};
std::vector<LinearShape> linear_shapes(const ModelShape& shape);

// One call of an op.
struct OpWork {
  const char* name;
  int64_t copies;  // calls of a step
  double bytes;    // of weights, or of keys and values
  double int8_operations, float_operations;

  // The least time of a call, seconds: memory and arithmetic may overlap.
  double bound(const MachineLimits& limits) const;
};

// `sequences` of `tokens` new tokens each, whose keys and values already number `context`.
struct StepSize {
  int64_t sequences, tokens, context;
};

// Weights as slicellm packs them: codes, and 3 bytes a group where they are quantised. Quantised
// weights meet int8 activations, keys and values are float16, logits are made for the last token of
// each sequence.
OpWork linear_work(const LinearShape& linear, const DTypeSpec& dtype, int64_t tokens);
std::vector<OpWork> step_work(const ModelShape& shape, const DTypeSpec& dtype,
                              const StepSize& size);

}  // namespace slicellm::roofline
