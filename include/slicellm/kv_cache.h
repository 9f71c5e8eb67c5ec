#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "slicellm/dtype.h"

namespace slicellm {

// Shape of the KV cache of a model. One block holds `block_tokens` token slots of all layers. int8
// holds codes -127..127 and a float16 scale for K and one for V of each token and head:
// half(largest magnitude / 127), at most 515.5, as float16 holds 127 times it.
struct KvLayout {
  int32_t layers = 0;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;
  int32_t block_tokens = 16;
  DType dtype = DType::float16;  // float16, float32 or int8

  // K or V of one token, layer and head.
  size_t token_bytes() const {
    return size_t{1} * head_dim * dtype_bits(dtype) / 8 + (dtype == DType::int8 ? 2 : 0);
  }
  // K and V, all layers.
  size_t block_bytes() const {
    return size_t{2} * layers * kv_heads * block_tokens * token_bytes();
  }
};

// The bytes of the KV blocks on a device. Knows nothing of tasks. Not thread-safe: used by the
// engine thread and, inside a step, by the device's own threads.
class KvStorage {
 public:
  virtual ~KvStorage() = default;
  virtual const KvLayout& layout() const = 0;
  virtual int32_t num_blocks() const = 0;
  virtual void copy_to_host(int32_t block, void* host) const = 0;    // block_bytes() bytes
  virtual void copy_from_host(int32_t block, const void* host) = 0;  // block_bytes() bytes
};

// Free list with reference counts over block ids 0..n-1. Asks are pure, does act and throw
// Error(resource) when asked for more than is free. Blocks may be shared (count > 1). A free block
// may be kept: it is given out after all others, the longest kept first, so that until then it can
// be taken back with what it holds, or be read by a copy.
class BlockAllocator {
 public:
  explicit BlockAllocator(int32_t num_blocks);

  int32_t num_blocks() const { return static_cast<int32_t>(refs_.size()); }
  int32_t num_free() const { return static_cast<int32_t>(free_.size()) + num_kept_; }
  int32_t num_shared() const { return num_shared_; }  // with a count above 1
  bool can_allocate(int32_t count) const { return count <= num_free(); }
  int32_t allocate();                              // reference count 1; lowest recently freed first
  void share(int32_t block);                       // +1; also of a kept block
  void release(int32_t block, bool keep = false);  // -1; free at 0
  int32_t refs(int32_t block) const { return refs_[block]; }

  // free + referenced == total and no block is in both sets; throws Error(state) otherwise.
  void check_integrity() const;

 private:
  // Kept blocks are a ring through `num_blocks()`, longest kept first.
  struct Link {
    int32_t before = -1, after = -1;  // -1: not kept
  };
  void unlink(int32_t block);

  std::vector<int32_t> free_;
  std::vector<int32_t> refs_;
  std::vector<Link> kept_;  // [num_blocks + 1]
  int32_t num_kept_ = 0, num_shared_ = 0;
};

}  // namespace slicellm
