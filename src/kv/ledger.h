#pragma once

#include <cstdint>
#include <vector>

#include "slicellm/batch.h"
#include "slicellm/kv_cache.h"
#include "slicellm/policy.h"

namespace slicellm {

// The KV blocks of one task: on the device or in the host pool, as `state` says.
struct BlockTable {
  KvState state = KvState::none;
  std::vector<int32_t> blocks;
};

// Who holds which KV block, on the device and in the host pool. It moves no bytes: swaps return the
// copies that the executor has to make, in order. Not thread-safe: used by the engine thread.
class KvLedger {
 public:
  KvLedger(int32_t device_blocks, int32_t host_blocks, int32_t block_tokens);

  int32_t block_tokens() const { return block_tokens_; }
  const BlockAllocator& device() const { return device_; }
  const BlockAllocator& host() const { return host_; }
  int32_t blocks_for(int64_t tokens) const {
    return static_cast<int32_t>((tokens + block_tokens_ - 1) / block_tokens_);
  }

  // Makes `table` cover `tokens` tokens on the device. All or nothing; throws Error(resource) when
  // the pool is short, Error(state) when the table is in the host pool.
  void grow(BlockTable& table, int64_t tokens);
  // Moves a table between the pools, appending to `copies`. Throws like `grow`.
  void swap_out(BlockTable& table, std::vector<KvCopy>& copies);
  void swap_in(BlockTable& table, std::vector<KvCopy>& copies);
  // Gives back every block, on whichever side. The table is empty afterwards.
  void release(BlockTable& table);

  void check_integrity() const;
  // Also requires that nothing is held. Throws Error(state).
  void check_all_free() const;

 private:
  void move(BlockTable& table, BlockAllocator& from, BlockAllocator& to, bool to_host,
            std::vector<KvCopy>& copies);

  BlockAllocator device_, host_;
  int32_t block_tokens_;
  std::vector<int32_t> scratch_;
};

}  // namespace slicellm
