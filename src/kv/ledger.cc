#include "kv/ledger.h"

#include <algorithm>
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

KvLedger::KvLedger(int32_t device_blocks, int32_t host_blocks, int32_t block_tokens,
                   bool prefix_cache)
    : device_(device_blocks), host_(host_blocks), block_tokens_(block_tokens) {
  if (block_tokens < 1) {
    throw Error(ErrorKind::invalid_argument, "block_tokens", std::to_string(block_tokens),
                "at least 1");
  }
  if (prefix_cache) prefixes_.emplace(device_blocks, block_tokens);
}

int32_t KvLedger::take_device_block() {
  const int32_t block = device_.allocate();
  if (prefixes_) prefixes_->forget(block);
  return block;
}

// Last blocks first: of a prefix that is kept, the end is forgotten before the beginning. Blocks
// that are `copied` to the host come last too: whoever writes to one waits for its copy.
void KvLedger::give_back(BlockAllocator& pool, const std::vector<int32_t>& blocks, bool copied) {
  const bool device = &pool == &device_;
  for (auto block = blocks.rbegin(); block != blocks.rend(); ++block) {
    const bool named = device && prefixes_ && prefixes_->content(*block) != PrefixCache::kNothing;
    pool.release(*block, named || copied);
  }
}

void KvLedger::grow(BlockTable& table, int64_t tokens) {
  if (table.state == KvState::host) require_state(table, KvState::device, "KV growth");
  const int32_t wanted = blocks_for(tokens);
  const int32_t missing = wanted - static_cast<int32_t>(table.blocks.size());
  if (missing > 0) require_free(device_, missing, "device KV");
  for (int32_t i = 0; i < missing; ++i) table.blocks.push_back(take_device_block());
  if (!table.blocks.empty()) table.state = KvState::device;
}

void KvLedger::move(BlockTable& table, BlockAllocator& from, BlockAllocator& to, bool to_host,
                    std::vector<KvCopy>& copies) {
  require_free(to, static_cast<int32_t>(table.blocks.size()), to_host ? "host KV" : "device KV");
  scratch_.clear();
  for (int32_t source : table.blocks) {
    const int32_t target = to_host ? to.allocate() : take_device_block();
    scratch_.push_back(target);
    copies.push_back({.to_host = to_host,
                      .device_block = to_host ? source : target,
                      .host_block = to_host ? target : source});
  }
  give_back(from, table.blocks, to_host);
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
  give_back(table.state == KvState::host ? host_ : device_, table.blocks, false);
  table = {};
}

int32_t KvLedger::attach(BlockTable& table, int32_t covered, std::span<const int32_t> tokens) {
  const size_t size = static_cast<size_t>(block_tokens_);
  const bool whole = covered == table.named * block_tokens_ &&
                     table.blocks.size() == static_cast<size_t>(table.named);
  if (!prefixes_ || table.state == KvState::host || !whole) return covered;
  for (size_t next = table.blocks.size() * size; next + size < tokens.size(); next += size) {
    const int32_t block = prefixes_->find(table.prefix, tokens.subspan(next, size));
    if (block < 0) break;
    device_.share(block);
    table.blocks.push_back(block);
    table.state = KvState::device;
    table.prefix = prefixes_->content(block);
    ++table.named;
  }
  return table.named * block_tokens_;
}

void KvLedger::note(BlockTable& table, std::span<const int32_t> tokens) {
  if (!prefixes_) return;
  const size_t size = static_cast<size_t>(block_tokens_);
  for (size_t next = table.named * size; next + size <= tokens.size(); next += size) {
    table.prefix =
        prefixes_->add(table.blocks[table.named], table.prefix, tokens.subspan(next, size));
    ++table.named;
  }
}

void KvLedger::forget(const BlockTable& table) {
  if (!prefixes_ || table.state != KvState::device) return;
  for (int32_t block : table.blocks) prefixes_->forget(block);
}

int32_t KvLedger::shared(const BlockTable& table) const {
  if (table.state != KvState::device) return 0;
  // Only blocks that came from the prefix cache, or went to it, can be.
  return static_cast<int32_t>(
      std::count_if(table.blocks.begin(), table.blocks.begin() + table.named,
                    [this](int32_t block) { return device_.refs(block) > 1; }));
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
