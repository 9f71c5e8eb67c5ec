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
}

int32_t BlockAllocator::allocate() {
  if (free_.empty()) {
    throw Error(ErrorKind::resource, "kv blocks", "none free",
                "a free one of " + std::to_string(num_blocks()));
  }
  const int32_t block = free_.back();
  free_.pop_back();
  refs_[block] = 1;
  return block;
}

void BlockAllocator::share(int32_t block) {
  if (block < 0 || block >= num_blocks() || refs_[block] == 0) {
    throw Error(ErrorKind::state, "kv block", std::to_string(block), "a block in use");
  }
  ++refs_[block];
}

void BlockAllocator::release(int32_t block) {
  if (block < 0 || block >= num_blocks() || refs_[block] == 0) {
    throw Error(ErrorKind::state, "kv block", std::to_string(block), "a block in use");
  }
  if (--refs_[block] == 0) free_.push_back(block);
}

void BlockAllocator::check_integrity() const {
  std::vector<char> is_free(refs_.size(), 0);
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
  }
}

}  // namespace slicellm
