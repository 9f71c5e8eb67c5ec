#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "slicellm/kv_cache.h"

namespace slicellm {

// K and V of a model in parts: block b is block b of each part, which holds its own layers. On the
// host a block is the parts' bytes, one after another.
class SplitKvStorage final : public KvStorage {
 public:
  // Parts of equally many blocks, whose layers add up to those of `layout`.
  SplitKvStorage(const KvLayout& layout, std::vector<std::unique_ptr<KvStorage>> parts)
      : layout_(layout), parts_(std::move(parts)) {}

  const KvLayout& layout() const override { return layout_; }
  int32_t num_blocks() const override { return parts_.front()->num_blocks(); }
  void copy_to_host(int32_t block, void* host) const override {
    auto* to = static_cast<std::byte*>(host);
    for (const auto& part : parts_) {
      part->copy_to_host(block, to);
      to += part->layout().block_bytes();
    }
  }
  void copy_from_host(int32_t block, const void* host) override {
    const auto* from = static_cast<const std::byte*>(host);
    for (const auto& part : parts_) {
      part->copy_from_host(block, from);
      from += part->layout().block_bytes();
    }
  }

  // Null where there is none of this index.
  KvStorage* part(size_t index) { return index < parts_.size() ? parts_[index].get() : nullptr; }

 private:
  KvLayout layout_;
  std::vector<std::unique_ptr<KvStorage>> parts_;
};

}  // namespace slicellm
