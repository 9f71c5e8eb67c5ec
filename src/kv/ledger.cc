#include "kv/ledger.h"

#include <string>

#include "slicellm/error.h"

namespace slicellm {
namespace {

void require_state(const BlockTable& table, KvState expected, const char* action) {
  if (table.state == expected) return;
  auto name = [](KvState s) {
    return s == KvState::none ? "none" : s == KvState::device ? "device" : "host";
  };
  throw Error(ErrorKind::state, action, std::string("KV state ") + name(table.state),
              name(expected));
}

void require_free(const BlockAllocator& pool, int32_t count, const char* name) {
  if (pool.can_allocate(count)) return;
  throw Error(
      ErrorKind::resource, name, std::to_string(count) + " blocks asked for",
      "at most " + std::to_string(pool.num_free()) + " of " + std::to_string(pool.num_blocks()));
}

}  // namespace

KvLedger::KvLedger(int32_t device_blocks, int32_t host_blocks, int32_t block_tokens)
    : device_(device_blocks), host_(host_blocks), block_tokens_(block_tokens) {
  if (block_tokens < 1) {
    throw Error(ErrorKind::invalid_argument, "block_tokens", std::to_string(block_tokens),
                "at least 1");
  }
}

void KvLedger::grow(BlockTable& table, int64_t tokens) {
  if (table.state == KvState::host) require_state(table, KvState::device, "KV growth");
  const int32_t wanted = blocks_for(tokens);
  const int32_t missing = wanted - static_cast<int32_t>(table.blocks.size());
  if (missing > 0) require_free(device_, missing, "device KV");
  for (int32_t i = 0; i < missing; ++i) table.blocks.push_back(device_.allocate());
  if (!table.blocks.empty()) table.state = KvState::device;
}

void KvLedger::move(BlockTable& table, BlockAllocator& from, BlockAllocator& to, bool to_host,
                    std::vector<KvCopy>& copies) {
  require_free(to, static_cast<int32_t>(table.blocks.size()), to_host ? "host KV" : "device KV");
  scratch_.clear();
  for (int32_t source : table.blocks) {
    const int32_t target = to.allocate();
    scratch_.push_back(target);
    copies.push_back({.to_host = to_host,
                      .device_block = to_host ? source : target,
                      .host_block = to_host ? target : source});
  }
  for (int32_t source : table.blocks) from.release(source);
  table.blocks.assign(scratch_.begin(), scratch_.end());
  table.state = to_host ? KvState::host : KvState::device;
}

void KvLedger::swap_out(BlockTable& table, std::vector<KvCopy>& copies) {
  require_state(table, KvState::device, "swap out");
  move(table, device_, host_, true, copies);
}

void KvLedger::swap_in(BlockTable& table, std::vector<KvCopy>& copies) {
  require_state(table, KvState::host, "swap in");
  move(table, host_, device_, false, copies);
}

void KvLedger::release(BlockTable& table) {
  BlockAllocator& pool = table.state == KvState::host ? host_ : device_;
  for (int32_t block : table.blocks) pool.release(block);
  table.blocks.clear();
  table.state = KvState::none;
}

void KvLedger::check_integrity() const {
  device_.check_integrity();
  host_.check_integrity();
}

void KvLedger::check_all_free() const {
  check_integrity();
  auto check = [](const BlockAllocator& pool, const char* name) {
    if (pool.num_free() == pool.num_blocks()) return;
    throw Error(ErrorKind::state, name,
                std::to_string(pool.num_blocks() - pool.num_free()) + " blocks held",
                "all free while no task is live");
  };
  check(device_, "device KV");
  check(host_, "host KV");
}

}  // namespace slicellm
