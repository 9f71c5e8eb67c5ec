#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cuda/attention_work.h"
#include "cuda/ptx.h"

// K and V on their way from the cache to the matrix products: in tiles of 16 tokens, as they lie in
// the cache, through shared memory by asynchronous copies.
namespace slicellm::cuda {

constexpr int kAttentionWarps = 4;
constexpr int kAttentionThreads = 32 * kAttentionWarps;
static_assert(kAttentionWarps == kSplitUnits && kAttentionWarps == kUnitBlocks);

// 16 tokens of K or V in shared memory. The rows' odd number of 16-byte pieces spreads any 8 rows
// over all banks.
template <int kDim, bool kInt8>
struct KvTile {
  static constexpr int kRowBytes = kInt8 ? kDim : 2 * kDim;
  static constexpr int kPieces = kRowBytes / 16;
  static constexpr int kStride = kRowBytes + 16;
  static constexpr int kScales = kKvBlockTokens * kStride;  // int8: [16] half
  static constexpr int kBytes = kScales + (kInt8 ? 2 * kKvBlockTokens : 0);
};

constexpr int kTilesPerWarp = 4;  // in shared memory at a time

template <int kDim, bool kInt8>
constexpr int kAttentionSharedBytes = kAttentionWarps* kTilesPerWarp* KvTile<kDim, kInt8>::kBytes;

__device__ inline __half2 as_half2(uint32_t bits) {
  __half2 halves;
  memcpy(&halves, &bits, sizeof(halves));
  return halves;
}
__device__ inline uint32_t as_bits(__half2 halves) {
  uint32_t bits;
  memcpy(&bits, &halves, sizeof(bits));
  return bits;
}

// A warp starts to copy a matrix of the cache, of whose rows the first `tokens` (0..16) are there;
// the tile's other rows and its dimensions beyond head_dim become zero.
template <int kDim, bool kInt8>
__device__ inline void start_load(const std::byte* matrix, int tokens, int head_dim,
                                  std::byte* tile) {
  using Tile = KvTile<kDim, kInt8>;
  const int lane = threadIdx.x % 32;
  const int row_bytes = kInt8 ? head_dim : 2 * head_dim;
  if (tokens == kKvBlockTokens && head_dim == kDim) {
    constexpr int kLanes = Tile::kPieces & -Tile::kPieces;  // side by side in a row: a power of two
    const int row = lane / kLanes, column = lane % kLanes * 16;
    const std::byte* from = matrix + row * Tile::kRowBytes + column;
    std::byte* to = tile + row * Tile::kStride + column;
#pragma unroll
    for (int i = 0; i < kKvBlockTokens; i += 32 / kLanes) {
#pragma unroll
      for (int j = 0; j < Tile::kRowBytes; j += 16 * kLanes) {
        cp_async_16(to + i * Tile::kStride + j, from + i * Tile::kRowBytes + j);
      }
    }
  } else if (row_bytes % 16 == 0) {
#pragma unroll 1
    for (int i = lane; i < kKvBlockTokens * Tile::kPieces; i += 32) {
      const int row = i / Tile::kPieces, column = i % Tile::kPieces * 16;
      const bool there = row < tokens && column < row_bytes;
      const std::byte* from = there ? matrix + row * row_bytes + column : matrix;
      cp_async_16(tile + row * Tile::kStride + column, from, there ? 16 : 0);
    }
  } else {  // rows that are not aligned: head dimensions of tiny models
#pragma unroll 1
    for (int i = lane; i < kKvBlockTokens * Tile::kRowBytes / 2; i += 32) {
      const int row = i / (Tile::kRowBytes / 2), column = i % (Tile::kRowBytes / 2) * 2;
      uint16_t value = 0;
      if (row < tokens && column < row_bytes) {
        value = *reinterpret_cast<const uint16_t*>(matrix + row * row_bytes + column);
      }
      *reinterpret_cast<uint16_t*>(tile + row * Tile::kStride + column) = value;
    }
  }
  if (kInt8 && lane < 2) {
    const int bytes = min(max(2 * tokens - 16 * lane, 0), 16);
    const std::byte* scales = matrix + kKvBlockTokens * row_bytes;
    cp_async_16(tile + Tile::kScales + 16 * lane, scales + 16 * lane, bytes);
  }
}

// Codes 0, 2 and codes 1, 3 of four: 1024 + code as a half is the code in the low bits.
__device__ inline void decode_codes(uint32_t codes, __half2& even, __half2& odd) {
  const __half2 offset = as_half2(0x64806480);  // 1024 + 128
  even = __hsub2(as_half2((codes & 0x00ff00ff) | 0x64006400), offset);
  odd = __hsub2(as_half2((codes >> 8 & 0x00ff00ff) | 0x64006400), offset);
}

// Dimensions [16 * step, 16 * step + 16) of a tile of K as columns: tokens 0..7 and 8..15. Within
// the 16, int8 has them in the order of load_queries.
template <int kDim, bool kInt8>
__device__ inline void load_keys(const std::byte* tile, int step, uint32_t (&low)[2],
                                 uint32_t (&high)[2]) {
  using Tile = KvTile<kDim, kInt8>;
  const int lane = threadIdx.x % 32;
  if constexpr (kInt8) {
    uint32_t codes[2];
    ldmatrix_x2(codes, tile + lane % 16 * Tile::kStride + step * 16);
    __half2 even, odd;
    decode_codes(codes[0], even, odd);
    low[0] = as_bits(even), low[1] = as_bits(odd);
    decode_codes(codes[1], even, odd);
    high[0] = as_bits(even), high[1] = as_bits(odd);
  } else {
    uint32_t r[4];
    const int token = lane % 8 + lane / 16 * 8;
    ldmatrix_x4(r, tile + token * Tile::kStride + (2 * step + lane / 8 % 2) * 16);
    low[0] = r[0], low[1] = r[1];
    high[0] = r[2], high[1] = r[3];
  }
}

// Dimensions [16 * step, 16 * step + 16) of a tile of V as two times 8 columns: the lower and the
// upper ones, or, of int8, the even and the odd ones.
template <int kDim, bool kInt8>
__device__ inline void load_values(const std::byte* tile, int step, uint32_t (&first)[2],
                                   uint32_t (&second)[2]) {
  using Tile = KvTile<kDim, kInt8>;
  const int lane = threadIdx.x % 32;
  if constexpr (kInt8) {
    uint32_t codes[2];
    ldmatrix_x2_trans(codes, tile + lane % 16 * Tile::kStride + step * 16);
    const auto* scales = reinterpret_cast<const __half2*>(tile + Tile::kScales);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const __half2 scale = scales[lane % 4 + 4 * i];
      __half2 even, odd;
      decode_codes(codes[i], even, odd);
      first[i] = as_bits(__hmul2(even, scale));
      second[i] = as_bits(__hmul2(odd, scale));
    }
  } else {
    uint32_t r[4];
    ldmatrix_x4_trans(r, tile + lane % 16 * Tile::kStride + (2 * step + lane / 16) * 16);
    first[0] = r[0], first[1] = r[1];
    second[0] = r[2], second[1] = r[3];
  }
}

}  // namespace slicellm::cuda
