#include "cpu/kv_storage.h"

#include <cstring>

#include "cpu/memory.h"
#include "cpu/ops_cpu.h"

namespace slicellm::cpu {

CpuKvStorage::CpuKvStorage(const KvLayout& layout, int32_t blocks)
    : layout_(layout),
      blocks_(blocks),
      data_(allocate_bytes(layout.block_bytes() * static_cast<size_t>(blocks), "kv blocks")) {}

void CpuKvStorage::copy_to_host(int32_t block, void* host) const {
  std::memcpy(host, row(block, 0, 0, 0, 0), layout_.block_bytes());
}

void CpuKvStorage::copy_from_host(int32_t block, const void* host) {
  std::memcpy(row(block, 0, 0, 0, 0), host, layout_.block_bytes());
}

std::byte* CpuKvStorage::row(int32_t block, int32_t layer, int kv, int32_t slot,
                             int32_t head) const {
  size_t index = static_cast<size_t>(block) * layout_.layers + layer;
  index = index * 2 + kv;
  index = index * layout_.block_tokens + slot;
  index = index * layout_.kv_heads + head;
  return data_.get() + index * layout_.head_dim * dtype_bits(layout_.dtype) / 8;
}

std::unique_ptr<KvStorage> make_kv_storage(const KvLayout& layout, int32_t blocks) {
  return std::make_unique<CpuKvStorage>(layout, blocks);
}

}  // namespace slicellm::cpu
