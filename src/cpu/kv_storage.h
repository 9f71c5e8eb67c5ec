#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "slicellm/kv_cache.h"

namespace slicellm::cpu {

// KV blocks in host memory: [block][layer][k, v][slot][kv_head][dim].
class CpuKvStorage : public KvStorage {
 public:
  CpuKvStorage(const KvLayout& layout, int32_t blocks);
  const KvLayout& layout() const override { return layout_; }
  int32_t num_blocks() const override { return blocks_; }
  void copy_to_host(int32_t block, void* host) const override;
  void copy_from_host(int32_t block, const void* host) override;

  // Bytes of head_dim elements of one K (kv = 0) or V (kv = 1) head.
  std::byte* row(int32_t block, int32_t layer, int kv, int32_t slot, int32_t head) const;

 private:
  KvLayout layout_;
  int32_t blocks_;
  std::shared_ptr<std::byte> data_;
};

}  // namespace slicellm::cpu
