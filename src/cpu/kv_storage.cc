#include "cpu/kv_storage.h"

#include <cstring>
#include <limits>
#include <string>

#include "cpu/attention_kernels.h"
#include "cpu/memory.h"
#include "slicellm/error.h"

namespace slicellm::cpu {
namespace {

void check(bool ok, const char* field, int64_t value, const char* expected) {
  if (!ok) throw Error(ErrorKind::invalid_argument, field, std::to_string(value), expected);
}

const KvLayout& checked(const KvLayout& layout) {
  constexpr int32_t kMany = 1 << 20;  // keeps the products below far from 2^64
  check(layout.layers > 0 && layout.layers < kMany, "layers", layout.layers, "1 to 2^20");
  check(layout.kv_heads > 0 && layout.kv_heads < kMany, "kv_heads", layout.kv_heads, "1 to 2^20");
  check(layout.head_dim > 0 && layout.head_dim <= 4096, "head_dim", layout.head_dim, "1 to 4096");
  check(layout.block_tokens > 0 && layout.block_tokens <= kSplitTokens &&
            layout.block_tokens % kPanel == 0,
        "block_tokens", layout.block_tokens, "a multiple of 16 up to 256");
  if (layout.dtype != DType::float16 && layout.dtype != DType::float32 &&
      layout.dtype != DType::int8) {
    throw Error(ErrorKind::invalid_argument, "kv_cache_dtype", to_string(layout.dtype),
                "float16, float32 or int8");
  }
  return layout;
}

}  // namespace

CpuKvStorage::CpuKvStorage(const KvLayout& layout, int32_t blocks)
    : layout_(checked(layout)), num_blocks_(blocks) {
  check(blocks >= 0, "blocks", blocks, "0 or more");
  matrix_bytes_ = layout.token_bytes() * layout.block_tokens;
  block_bytes_ = layout.block_bytes();
  if (block_bytes_ > (std::numeric_limits<size_t>::max() / 2 - kReadAhead) / (size_t{1} + blocks)) {
    throw Error(ErrorKind::resource, "blocks", std::to_string(blocks),
                "a number of blocks that fits in memory");
  }
  memory_ = allocate_bytes(block_bytes_ * blocks + kReadAhead, "kv_cache");
}

void CpuKvStorage::copy_to_host(int32_t block, void* host) const {
  std::memcpy(host, keys(block, 0, 0), block_bytes_);
}

void CpuKvStorage::copy_from_host(int32_t block, const void* host) {
  std::memcpy(keys(block, 0, 0), host, block_bytes_);
}

}  // namespace slicellm::cpu
