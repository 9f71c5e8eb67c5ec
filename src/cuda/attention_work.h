#pragma once

#include <cstdint>

// What the attention planner tells the kernels. All of it is int32, uploaded once per step.
//
// The context of a row is worked through in units of 64 tokens, each with a softmax of its own; the
// units of a split (256 tokens) are folded together in order, then the splits. Both are cut at
// absolute positions, so a row's result depends on its own context alone, whoever computes which
// part of it (the online softmax of Milakov and Gimelshein, 2018; the splits of Dao et al.,
// "Flash-Decoding", 2023).
namespace slicellm::cuda {

constexpr int kKvBlockTokens = 16;
constexpr int kUnitTokens = 64;
constexpr int kUnitBlocks = kUnitTokens / kKvBlockTokens;
constexpr int kSplitUnits = 4;
constexpr int kSplitTokens = kUnitTokens * kSplitUnits;

// Rows that a block of threads works on at once: queries (token, head) of one sequence that share a
// kv head. A narrow tile is decode: its warps divide the tokens. A wide one is prefill: its warps
// divide the rows.
constexpr int kNarrowRows = 16;
constexpr int kWideRows = 64;

// Where a token of the flat batch belongs.
struct TokenPlace {
  int32_t position, block_position;  // rows of the rotary table; the second for glm_2d alone
  int32_t slot;                      // KV block * 16 + place in the block
  int32_t first, last;               // the positions that it sees: [first, last)
};

// Work of one block of threads, for each kv head; none without rows. Row r of a sequence is its
// token r / group and head r % group of the kv head.
struct AttentionItem {
  int32_t first_token;              // of the sequence in the flat batch
  int32_t first_row, rows;          // of the sequence
  int32_t table;                    // of its KV blocks, in `tables`
  int32_t end;                      // tokens of the sequence in KV, this step's included
  int32_t first_seen, last_seen;    // positions that any of the rows sees: [first, last)
  int32_t first_split, last_split;  // the part of them that is this item's
  // A tile of rows that is cut among several items: their splits' results go to rows
  // partial + (split - tile_first) * rows + row, and the last item to end folds them.
  int32_t partial;                // -1: this item has the whole tile
  int32_t tile_first, tile_last;  // splits of the tile
  int32_t tile_items;
  int32_t counter;  // of finished items
};

}  // namespace slicellm::cuda
