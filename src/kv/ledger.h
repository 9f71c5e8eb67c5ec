#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "kv/prefix_cache.h"
#include "slicellm/batch.h"
#include "slicellm/kv_cache.h"
#include "slicellm/policy.h"

namespace slicellm {

// The KV blocks of one task: on the device or in the host pool, as `state` says.
struct BlockTable {
  KvState state = KvState::none;
  std::vector<int32_t> blocks;
  // Leading full blocks whose contents the prefix cache has a name for, and that of the last.
  int32_t named = 0;
  PrefixCache::Content prefix = PrefixCache::kStart;
};

// Who holds which KV block, on the device and in the host pool. It moves no bytes: swaps return the
// copies that the executor has to make, in order. With a prefix cache, full blocks of computed
// tokens are found again by what they hold, also after they were given back; several tables may
// then hold a block. A shared block is never written: what a table appends goes to blocks of its
// own. Not thread-safe: used by the engine thread.
class KvLedger {
 public:
  KvLedger(int32_t device_blocks, int32_t host_blocks, int32_t block_tokens,
           bool prefix_cache = false);

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

  // Adds the blocks that hold what follows the `covered` tokens of `table` in `tokens`, as far as
  // the prefix cache knows them and but for the last token. Returns the tokens covered then.
  int32_t attach(BlockTable& table, int32_t covered, std::span<const int32_t> tokens);
  // Tells that K and V of all `tokens` are in `table`'s blocks on the device.
  void note(BlockTable& table, std::span<const int32_t> tokens);
  // Tells that what `table`'s blocks hold is not to be found by others.
  void forget(const BlockTable& table);
  int32_t shared(const BlockTable& table) const;  // device blocks that other tables hold too

  void check_integrity() const;
  // Also requires that nothing is held. Throws Error(state).
  void check_all_free() const;

 private:
  void move(BlockTable& table, BlockAllocator& from, BlockAllocator& to, bool to_host,
            std::vector<KvCopy>& copies);

  int32_t take_device_block();
  void give_back(BlockAllocator& pool, const std::vector<int32_t>& blocks, bool copied);

  BlockAllocator device_, host_;
  int32_t block_tokens_;
  std::optional<PrefixCache> prefixes_;
  std::vector<int32_t> scratch_;
};

}  // namespace slicellm
