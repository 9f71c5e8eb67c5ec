#include "cuda/kv_storage.h"

#include <limits>
#include <string>

#include "cuda/attention.h"
#include "slicellm/error.h"

namespace slicellm::cuda {
namespace {

void check_count(bool ok, const char* field, int64_t value, const char* expected) {
  if (!ok) throw Error(ErrorKind::invalid_argument, field, std::to_string(value), expected);
}

const KvLayout& checked(const KvLayout& layout) {
  constexpr int32_t kMany = 1 << 20;  // keeps the products below far from 2^64
  check_count(layout.layers > 0 && layout.layers < kMany, "layers", layout.layers, "1 to 2^20");
  check_count(layout.kv_heads > 0 && layout.kv_heads < kMany, "kv_heads", layout.kv_heads,
              "1 to 2^20");
  check_count(layout.head_dim > 0, "head_dim", layout.head_dim, "1 or more");
  if (layout.block_tokens != kKvBlockTokens) {
    throw Error(ErrorKind::unsupported, "block_tokens", std::to_string(layout.block_tokens),
                "16 on a GPU");
  }
  if (layout.dtype != DType::float16 && layout.dtype != DType::int8) {
    throw Error(ErrorKind::unsupported, "kv_cache_dtype", to_string(layout.dtype),
                "float16 or int8 on a GPU");
  }
  return layout;
}

}  // namespace

CudaKvStorage::CudaKvStorage(const KvLayout& layout, int32_t blocks, const Stream& stream,
                             const DeviceMemory& memory)
    : layout_(checked(layout)), num_blocks_(blocks), stream_(&stream), memory_(memory) {
  check_count(blocks >= 0, "blocks", blocks, "0 or more");
  matrix_bytes_ = layout.token_bytes() * kKvBlockTokens;
  block_bytes_ = layout.block_bytes();
  if (block_bytes_ > std::numeric_limits<size_t>::max() / 2 / (size_t{1} + blocks)) {
    throw Error(ErrorKind::resource, "blocks", std::to_string(blocks),
                "a number of blocks that fits in memory");
  }
  prepare_attention(layout_);
  memory_ = DeviceBuffer(memory, block_bytes_ * blocks, "kv_cache");
}

std::byte* CudaKvStorage::block_data(int32_t block) const {
  check_count(block >= 0 && block < num_blocks_, "block", block, "a block of the storage");
  return memory_.get() + block_bytes_ * block;
}

void CudaKvStorage::start_copy_to_host(int32_t block, void* host, const Stream& stream) const {
  stream.copy(host, block_data(block), block_bytes_, cudaMemcpyDeviceToHost);
}

void CudaKvStorage::start_copy_from_host(int32_t block, const void* host, const Stream& stream) {
  stream.copy(block_data(block), host, block_bytes_, cudaMemcpyHostToDevice);
}

void CudaKvStorage::copy_to_host(int32_t block, void* host) const {
  start_copy_to_host(block, host, *stream_);
  stream_->synchronize();
}

void CudaKvStorage::copy_from_host(int32_t block, const void* host) {
  start_copy_from_host(block, host, *stream_);
  stream_->synchronize();
}

}  // namespace slicellm::cuda
