#pragma once

#include <cstdint>

// The inner loops of attention in plain pointers, one table per instruction set.
namespace slicellm::cpu {

// Tokens (of K) or dimensions (of V) that the kernels work on at a time; K and V may be read up to
// the end of a panel, past the visible tokens or the head's dimensions.
constexpr int kPanel = 16;

// Tokens of one partial softmax. A context is cut at multiples of this, from position 0, and the
// parts are merged in order: so a token's result depends on its own position alone.
constexpr int kSplitTokens = 256;
constexpr int kSplitPanels = kSplitTokens / kPanel;

constexpr int kMostRows = 12;  // AttentionKernels::max_rows is at most this

// A softmax-weighted sum of values over some tokens: `values` divided by `sum` is the result.
struct PartialRow {
  float* values;  // [head_dim]
  float* max;     // largest score; -infinity when no token was visible
  float* sum;     // sum of exp(score - max)
};

// Rows (queries of heads that share K and V) against the tokens of one split.
struct SplitTask {
  int rows = 0;  // 1..AttentionKernels::max_rows
  int head_dim = 0;
  const float* queries = nullptr;     // [rows, head_dim], rotated and scaled
  const void* const* keys = nullptr;  // a panel each: [head_dim, key_stride], at its first token
  int key_stride = 0;
  const void* const* values = nullptr;  // a panel each: [kPanel, head_dim]
  // Of int8 codes: float16 scales of the tokens, a panel each: [kPanel].
  const uint16_t* const* key_scales = nullptr;
  const uint16_t* const* value_scales = nullptr;
  // Row r sees tokens [first[r], last[r]) of the split; none if first >= last. No row sees tokens
  // outside [any_first, any_last); K and V are read only in panels that this touches.
  const int32_t* first = nullptr;
  const int32_t* last = nullptr;
  int32_t any_first = 0, any_last = 0;

  float* scores = nullptr;  // scratch [rows, kSplitTokens]
  float* out = nullptr;     // [rows, head_dim rounded up to kPanel]: sum of exp(score - max) * v
  float* max = nullptr;     // [rows]
  float* sum = nullptr;     // [rows]
};

struct AttentionKernels {
  int max_rows;
  void (*attend_half)(const SplitTask& task);   // K and V are IEEE halves
  void (*attend_float)(const SplitTask& task);  // K and V are floats
  void (*attend_int8)(const SplitTask& task);   // K and V are signed codes
  // `into` becomes the softmax over its own and `part`'s tokens.
  void (*merge)(const PartialRow& into, const PartialRow& part, int head_dim);
  // Rounds to nearest even; beyond the largest half becomes the largest half, so that one outlier
  // cannot turn a row into NaN.
  void (*to_half)(const float* x, int64_t count, uint16_t* out);
  // Codes of x as KvLayout has them; returns their scale, a half.
  uint16_t (*to_int8)(const float* x, int64_t count, int8_t* out);
};

extern const AttentionKernels kAttentionKernelsPortable;
#if defined(__x86_64__)
extern const AttentionKernels kAttentionKernelsAvx2;
extern const AttentionKernels kAttentionKernelsAvx512;
#endif

}  // namespace slicellm::cpu
