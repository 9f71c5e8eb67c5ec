#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

namespace slicellm {

// What full KV blocks on the device hold: a prefix of tokens each, named by the content of the
// block before it and the block's own tokens. Contents are compared token by token on a hit, never
// trusted to a hash. Knows nothing of who holds a block. Not thread-safe: used by the engine
// thread. (Kwon et al. 2023, PagedAttention, section 4.4; here with exact names for prefixes.)
class PrefixCache {
 public:
  using Content = uint64_t;               // never used twice
  static constexpr Content kNothing = 0;  // of a block that holds no prefix
  static constexpr Content kStart = 1;    // before the first block
  PrefixCache(int32_t num_blocks, int32_t block_tokens);

  // The block that holds `tokens` [block_tokens] after `parent`, or -1.
  int32_t find(Content parent, std::span<const int32_t> tokens) const;
  // Says that `block` holds `tokens` after `parent`. Returns the content's name: that of the block
  // that holds the same already, if there is one (then nothing is noted of `block`).
  Content add(int32_t block, Content parent, std::span<const int32_t> tokens);
  // The block is about to be written by somebody else.
  void forget(int32_t block);

  Content content(int32_t block) const { return entries_[block].content; }

 private:
  struct Entry {
    Content content = kNothing, parent = kNothing;
    uint64_t hash = 0;
  };
  bool holds(int32_t block, Content parent, std::span<const int32_t> tokens) const;

  int32_t block_tokens_;
  Content next_ = kStart + 1;
  std::vector<Entry> entries_;                          // by block
  std::vector<int32_t> tokens_;                         // [num_blocks, block_tokens]
  std::unordered_multimap<uint64_t, int32_t> by_hash_;  // of parent and tokens, to the block
};

}  // namespace slicellm
