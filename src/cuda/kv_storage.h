#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/memory.h"
#include "cuda/runtime.h"
#include "slicellm/kv_cache.h"

namespace slicellm::cuda {

// KV blocks in device memory: [block][layer][kv head][K, V], each [16 tokens][head_dim] of float16,
// or of int8 codes plus 128 followed by the scales of the 16 tokens (see KvLayout).
class CudaKvStorage final : public KvStorage {
 public:
  // Copies go through `stream`, after what it has been given so far; it must outlive the storage.
  // Throws Error(invalid_argument) for a bad layout or count, Error(unsupported) for a layout that
  // the GPU kernels lack (float32, blocks of other than 16 tokens), Error(resource) without memory.
  CudaKvStorage(const KvLayout& layout, int32_t blocks, const Stream& stream,
                const DeviceMemory& memory);

  const KvLayout& layout() const override { return layout_; }
  int32_t num_blocks() const override { return num_blocks_; }
  void copy_to_host(int32_t block, void* host) const override;
  void copy_from_host(int32_t block, const void* host) override;

  // The same on another stream without waiting; `host` is pinned memory that stays until the stream
  // has passed.
  void start_copy_to_host(int32_t block, void* host, const Stream& stream) const;
  void start_copy_from_host(int32_t block, const void* host, const Stream& stream);

  std::byte* data() const { return memory_.get(); }
  size_t block_bytes() const { return block_bytes_; }
  size_t matrix_bytes() const { return matrix_bytes_; }  // K or V of one head and layer

 private:
  std::byte* block_data(int32_t block) const;

  KvLayout layout_;
  int32_t num_blocks_;
  const Stream* stream_;
  size_t matrix_bytes_;
  size_t block_bytes_;
  DeviceBuffer memory_;
};

}  // namespace slicellm::cuda
