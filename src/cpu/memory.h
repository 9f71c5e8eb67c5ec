#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "cpu/numa.h"

namespace slicellm::cpu {

// Memory whose start is aligned to 64 bytes; from 2 MiB on it is mapped apart and asked to be in
// huge pages, which is worth a third of the read bandwidth. Zeroed. Throws Error(resource) naming
// `field`.
std::shared_ptr<std::byte> allocate_bytes(size_t bytes, const char* field);

// Scratch floats that grow and are never shrunk; content is lost on growth.
class Scratch {
 public:
  template <class T>
  T* get(size_t count) {
    reserve(count * sizeof(T));
    return reinterpret_cast<T*>(memory_.get());
  }

 private:
  void reserve(size_t bytes);

  std::shared_ptr<std::byte> memory_;
  size_t capacity_ = 0;
};

// Hands out parts of large blocks of huge pages, so that a model's weights lie together in the
// order of their packing. A block is freed with the last of its parts.
// Matrices are placed on `nodes` by rows.
class WeightArena {
 public:
  explicit WeightArena(std::vector<NumaNode> nodes = {}) : nodes_(std::move(nodes)) {}

  std::shared_ptr<std::byte> allocate(size_t bytes);

 private:
  std::vector<NumaNode> nodes_;
  std::shared_ptr<std::byte> block_;
  size_t used_ = 0, capacity_ = 0;
};

}  // namespace slicellm::cpu
