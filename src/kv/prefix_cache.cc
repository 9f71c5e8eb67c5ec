#include "kv/prefix_cache.h"

#include <algorithm>

namespace slicellm {
namespace {

// A multiply and a rotation a token; only spreads, nothing relies on it.
uint64_t hash_of(PrefixCache::Content parent, std::span<const int32_t> tokens) {
  uint64_t hash = parent * 0x9e3779b97f4a7c15u;
  for (int32_t token : tokens) {
    hash = (hash ^ static_cast<uint32_t>(token)) * 0xff51afd7ed558ccdu;
    hash ^= hash >> 32;
  }
  return hash;
}

}  // namespace

PrefixCache::PrefixCache(int32_t num_blocks, int32_t block_tokens)
    : block_tokens_(block_tokens),
      entries_(static_cast<size_t>(num_blocks)),
      tokens_(static_cast<size_t>(num_blocks) * static_cast<size_t>(block_tokens)) {}

bool PrefixCache::holds(int32_t block, Content parent, std::span<const int32_t> tokens) const {
  const auto known = tokens_.begin() + int64_t{block} * block_tokens_;
  return entries_[block].parent == parent && std::equal(tokens.begin(), tokens.end(), known);
}

int32_t PrefixCache::find(Content parent, std::span<const int32_t> tokens) const {
  const auto [first, last] = by_hash_.equal_range(hash_of(parent, tokens));
  for (auto it = first; it != last; ++it) {
    if (holds(it->second, parent, tokens)) return it->second;
  }
  return -1;
}

PrefixCache::Content PrefixCache::add(int32_t block, Content parent,
                                      std::span<const int32_t> tokens) {
  if (const int32_t same = find(parent, tokens); same >= 0) return content(same);
  const uint64_t hash = hash_of(parent, tokens);
  std::copy(tokens.begin(), tokens.end(), tokens_.begin() + int64_t{block} * block_tokens_);
  entries_[block] = {next_++, parent, hash};
  by_hash_.emplace(hash, block);
  return content(block);
}

void PrefixCache::forget(int32_t block) {
  Entry& entry = entries_[block];
  if (entry.content == kNothing) return;
  const auto [first, last] = by_hash_.equal_range(entry.hash);
  by_hash_.erase(std::find_if(first, last, [block](const auto& e) { return e.second == block; }));
  entry = {};
}

}  // namespace slicellm
