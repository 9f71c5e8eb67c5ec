#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "slicellm/kv_cache.h"

namespace slicellm::cpu {

// KV blocks in host memory. A block is [layer][kv head][K, V]; K of a block is transposed,
// [head_dim][block_tokens], so that one vector load brings one dimension of several tokens; V is
// [block_tokens][head_dim]. Codes of int8 are signed bytes; the scales of the block's tokens follow
// them.
class CpuKvStorage final : public KvStorage {
 public:
  // Vectors that start at a wanted element may read this many bytes past it, also at the very end.
  static constexpr size_t kReadAhead = 64;

  // Throws Error(invalid_argument) for a bad layout or count, Error(resource) without memory.
  CpuKvStorage(const KvLayout& layout, int32_t blocks);

  const KvLayout& layout() const override { return layout_; }
  int32_t num_blocks() const override { return num_blocks_; }
  void copy_to_host(int32_t block, void* host) const override;
  void copy_from_host(int32_t block, const void* host) override;

  std::byte* keys(int32_t block, int32_t layer, int32_t head) const {
    const size_t index = static_cast<size_t>(layer) * layout_.kv_heads + head;
    return memory_.get() + block * block_bytes_ + index * 2 * matrix_bytes_;
  }
  std::byte* values(int32_t block, int32_t layer, int32_t head) const {
    return keys(block, layer, head) + matrix_bytes_;
  }
  // Of int8: the scales that follow a matrix of codes, [block_tokens] halves.
  uint16_t* scales(std::byte* matrix) const {
    return reinterpret_cast<uint16_t*>(matrix +
                                       size_t{1} * layout_.head_dim * layout_.block_tokens);
  }

 private:
  KvLayout layout_;
  int32_t num_blocks_;
  size_t matrix_bytes_;  // K or V of one head and layer
  size_t block_bytes_;
  std::shared_ptr<std::byte> memory_;
};

}  // namespace slicellm::cpu
