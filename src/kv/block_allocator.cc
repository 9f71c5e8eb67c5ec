#include <string>

#include "slicellm/error.h"
#include "slicellm/kv_cache.h"

namespace slicellm {

BlockAllocator::BlockAllocator(int32_t num_blocks) {
  if (num_blocks < 0) {
    throw Error(ErrorKind::invalid_argument, "kv blocks", std::to_string(num_blocks), "0 or more");
  }
  refs_.assign(static_cast<size_t>(num_blocks), 0);
  free_.reserve(refs_.size());
  for (int32_t block = num_blocks - 1; block >= 0; --block) free_.push_back(block);
  kept_.resize(refs_.size() + 1);
  kept_.back() = {num_blocks, num_blocks};
}

void BlockAllocator::unlink(int32_t block) {
  const Link link = kept_[block];
  kept_[link.before].after = link.after;
  kept_[link.after].before = link.before;
  kept_[block] = {};
  --num_kept_;
}

int32_t BlockAllocator::allocate() {
  if (num_free() == 0) {
    throw Error(ErrorKind::resource, "kv blocks", "none free",
                "a free one of " + std::to_string(num_blocks()));
  }
  int32_t block;
  if (free_.empty()) {
    block = kept_.back().after;
    unlink(block);
  } else {
    block = free_.back();
    free_.pop_back();
  }
  refs_[block] = 1;
  return block;
}

void BlockAllocator::share(int32_t block) {
  if (block < 0 || block >= num_blocks() || (refs_[block] == 0 && kept_[block].after < 0)) {
    throw Error(ErrorKind::state, "kv block", std::to_string(block), "a block in use or kept");
  }
  if (refs_[block] == 0) unlink(block);
  num_shared_ += ++refs_[block] == 2;
}

void BlockAllocator::release(int32_t block, bool keep) {
  if (block < 0 || block >= num_blocks() || refs_[block] == 0) {
    throw Error(ErrorKind::state, "kv block", std::to_string(block), "a block in use");
  }
  const int32_t left = --refs_[block];
  num_shared_ -= left == 1;
  if (left > 0) return;
  if (!keep) {
    free_.push_back(block);
    return;
  }
  const int32_t end = num_blocks(), last = kept_[end].before;
  kept_[block] = {last, end};
  kept_[last].after = kept_[end].before = block;
  ++num_kept_;
}

void BlockAllocator::check_integrity() const {
  std::vector<char> is_free(refs_.size(), 0);
  int32_t kept = 0, shared = 0;
  for (int32_t block = kept_.back().after; block != num_blocks(); block = kept_[block].after) {
    if (++kept > num_kept_ || is_free[block] || refs_[block] != 0) {
      throw Error(ErrorKind::state, "kv blocks", "block " + std::to_string(block) + " kept twice",
                  "each block free or in use");
    }
    is_free[block] = 1;
  }
  for (int32_t block : free_) {
    if (block < 0 || block >= num_blocks() || is_free[block] || refs_[block] != 0) {
      throw Error(ErrorKind::state, "kv blocks", "block " + std::to_string(block) + " free twice",
                  "each block free or in use");
    }
    is_free[block] = 1;
  }
  for (int32_t block = 0; block < num_blocks(); ++block) {
    if (refs_[block] < 0 || (refs_[block] == 0) != static_cast<bool>(is_free[block])) {
      throw Error(ErrorKind::state, "kv blocks", "block " + std::to_string(block) + " lost",
                  "each block free or in use");
    }
    shared += refs_[block] > 1;
  }
  if (kept != num_kept_ || shared != num_shared_) {
    throw Error(ErrorKind::state, "kv blocks",
                std::to_string(kept) + " kept and " + std::to_string(shared) + " shared",
                std::to_string(num_kept_) + " and " + std::to_string(num_shared_));
  }
}

}  // namespace slicellm
