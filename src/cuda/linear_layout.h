#pragma once

#include <cstddef>
#include <cstdint>

// The packed form of a linear layer on the GPU. Shared by the packer, the launcher and the kernels;
// plain data only.
//
// Weights are the 16-row operand of mma m16n8k16 (see ptx.h). They lie in tiles of 16 output rows,
// a tile in units of 64 columns, a unit in the order in which the 32 lanes of a warp hold it: every
// lane reads 16 bytes at a time, a warp 512 contiguous ones. With g = lane / 4, t = lane % 4:
//
//   A unit is two blocks of 32 columns. A lane holds columns 8t..8t+7 of each block, of rows g and
//   g + 8. Its columns 4s..4s+3 are its share of the block's matrix step s = 0, 1: which column
//   meets which k of the instruction does not matter as long as weights and tokens agree, and so a
//   lane reads a token's 8 columns as 16 contiguous bytes, straight from the row-major activations.
//
//   int4:    [lane] 4 words: block 0 row g, block 0 row g + 8, then block 1. In a word, nibbles 0
//            and 4 are columns 0 and 1, nibbles 1 and 5 columns 2 and 3, 2 and 6: 4 and 5, 3 and 7:
//            6 and 7, so that a mask leaves a pair of columns in the two halves of the word.
//   int8:    [block][lane] 8 bytes of row g, 8 bytes of row g + 8.
//   16 bit:  [block][step s][lane] columns 4s, 4s + 1 of row g, the same of row g + 8, then 4s + 2
//            and 4s + 3 of both.
//
// Rows beyond the matrix are zero (int weights: scale and offset 0); columns beyond it are anything
// finite, since the activations are zero there.
//
// Int weights decode to (code - zero) * scale + offset, rounded once to float16. Scale and zero of
// row g and of row g + 8 of a group are neighbours: [tile][group][g] {row g, row g + 8}, a 32-bit
// word each: float16 scale in the lower half, float16 -(1024 + zero) in the upper one. Offsets, for
// weights whose minimum is no multiple of their scale, lie in the same order, float16 in the lower
// half of a word.
//
// A row's products are summed over `slices` ranges of columns, and then those sums in their order.
// The slices follow from the shape alone, so they and the matrix steps' order within one are the
// same for every batch: equal inputs give equal bits. Decode gives each slice to a warp.
namespace slicellm::cuda {

enum class WeightKind : uint8_t { int4, int8, float16, bfloat16 };

constexpr int kTileRows = 16;
constexpr int kUnitColumns = 64;
constexpr int kBlockColumns = 32;  // groups are one or 2^n of these, or the whole row
constexpr int kBlocksPerUnit = kUnitColumns / kBlockColumns;
constexpr int kMaxSlices = 8;

struct LinearLayout {
  WeightKind kind;
  bool gated;  // rows 0..7 of a tile are gate rows, rows 8..15 the up rows that meet them
  bool offsets;
  bool bias;
  int32_t in, out;  // of the matrix; out counts gate and up rows
  int32_t tiles, units;
  int32_t slices, slice_units;  // the last slices may be short or empty
  int32_t groups;               // of a row; 0 for 16-bit weights
  int32_t group_shift;          // a group is 2^group_shift blocks
  // Byte offsets from the weights, which come first.
  size_t scales_at, offsets_at, bias_at;  // bias: float32 [tiles][16], in the order of the tiles
  size_t bytes;                           // of everything

  // Columns of an activation row. Those beyond `in` must be zero.
  int32_t input_width() const { return units * kUnitColumns; }
  int32_t outputs() const { return gated ? out / 2 : out; }
};

constexpr int bits_of(WeightKind kind) {
  return kind == WeightKind::int4 ? 4 : kind == WeightKind::int8 ? 8 : 16;
}

}  // namespace slicellm::cuda
