#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

// The packed form of one linear layer and of the activations that meet it. Shared by the packer,
// the driver and the kernels of every instruction set; plain data only.
//
// Weights lie in panels of `panel_rows` output rows. Float types: [in][panel_rows] elements. Int
// types: each weight group is cut into blocks of at most 64 columns, each padded to a multiple of
// 8 columns (a step). A step of int4 is one 32-bit word per row: byte j holds column j in the low
// nibble and column 4 + j in the high one. A step of int8 is two words per row: columns 0-3, then
// 4-7. (Some kernels want another order, see CodeOrder.) So that a panel is read as one stream,
// every few groups form a section: their scales and zeros, [section_groups][panel_rows] each, then
// their codes.
//
// Activations are cut into tiles of tokens that one kernel call takes together; inside a tile,
// tokens are interleaved so that a kernel reads one stream.
namespace slicellm::cpu {

// Of everything below as pack_linear writes it. To be raised with each change of the packed bytes:
// files written before are then packed anew (test_pack_cache.py tells).
constexpr int kPackedVersion = 1;

enum class WeightKind : uint8_t { float32, float16, bfloat16, int8, int4 };
constexpr int kWeightKinds = 5;

enum class ActivationKind : uint8_t {
  float32,     // [columns][tokens] floats
  int8,        // [columns / 4][tokens][4] codes, [blocks][tokens] scales and sums
  int16,       // the same codes as int16: columns 0, 2, 1, 3 of each four
  int8_steps,  // [columns / 8][tokens][8] codes, else as int8
};

// How the codes of a step lie.
enum class CodeOrder : uint8_t {
  words,  // as above
  // The 8 columns of a row side by side. int8: row after row. int4: 16 bytes for each four rows,
  // the first two of them in the low nibbles, the others in the high ones.
  row_pairs,
};

constexpr int kStep = 8;       // columns of a step
constexpr int kMaxBlock = 64;  // columns that share an activation scale, at most
constexpr int kMaxTokens = 16;

struct LinearLayout {
  WeightKind kind;
  ActivationKind activation;
  // Int types: scales as float16 and zeros as unsigned bytes, w = scale * (code - zero);
  // otherwise scales and minimums as float32, w = minimum + scale * code.
  bool compact;
  int panel_rows;
  int max_tokens;  // of a tile

  int64_t in;         // columns
  int64_t padded_in;  // columns after padding
  // Int types only.
  int64_t group;               // columns of a group; the last may be short
  int64_t groups;              // of a row
  int64_t blocks_per_group;    // of a full group
  int64_t blocks;              // of a row
  const uint8_t* block_steps;  // [blocks]

  int section_groups;
  size_t zeros_offset, codes_offset;  // within a section, which starts with its scales
  size_t panel_bytes;
  size_t act_scales_offset, act_sums_offset, token_bytes;  // within a tile, times its tokens
};

// One tile: out[t * out_stride + r] = product of token t and row r, for all rows of the panel.
using TileKernel = void (*)(const LinearLayout& layout, const std::byte* panel,
                            const std::byte* tile, float* out, int64_t out_stride);
// Writes token `t` of a tile of `tokens` from x[in].
using PrepareToken = void (*)(const LinearLayout& layout, const float* x, int tokens, int t,
                              std::byte* tile);

// The kernels for one kind of weights and activations.
struct LinearKernel {
  ActivationKind activation;
  CodeOrder order;
  // The codes of int8 weights are packed as code - 128, with their zeros (now signed bytes) and
  // minimums moved to match: for instructions that multiply only numbers of the same sign.
  bool signed_codes;
  int panel_rows;
  int max_tokens;
  TileKernel tile[2][kMaxTokens];  // [compact][tokens - 1]; float types ignore compact
  PrepareToken prepare;
};

// All kernels of one instruction set.
struct LinearKernels {
  std::array<LinearKernel, kWeightKinds> exact;  // activations in float32
  std::array<LinearKernel, 2> integer;           // int8, int4 weights, quantised activations
};

extern const LinearKernels portable_linear_kernels;
#if defined(__x86_64__)
extern const LinearKernels avx2_linear_kernels;
extern const LinearKernels avx512_linear_kernels;
#elif defined(__aarch64__)
extern const LinearKernels neon_linear_kernels;
extern const LinearKernels dotprod_linear_kernels;
extern const LinearKernels i8mm_linear_kernels;
#endif

}  // namespace slicellm::cpu
