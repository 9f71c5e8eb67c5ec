#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "cuda/linear.h"
#include "cuda/memory.h"
#include "cuda/runtime.h"

namespace slicellm::cuda {

// Brings weights to the GPU while a model is loaded. They pass through two pieces of pinned memory
// in turn: while one is copied, the next is packed into the other. An integrated GPU reads memory
// that the host has filled in place (managed: the caches of both sides serve it, while pinned
// memory is not cached by a Jetson's GPU). Everything has arrived for what the stream is given
// later. For one thread at a time.
class Uploader {
 public:
  static constexpr size_t kPieceBytes = size_t{16} << 20;  // larger only for a larger tile

  Uploader(const Stream& stream, const DeviceMemory& memory, bool in_place, int threads,
           size_t piece_bytes = kPieceBytes);

  DeviceBuffer linear(const LinearPacker& packer);
  // An array as it is, read by `threads` threads.
  DeviceBuffer array(const void* data, size_t bytes, const char* field);
  // Waits for the copies and frees the pieces; the next upload takes new ones.
  void finish();

 private:
  struct Piece {
    PinnedBuffer memory;
    Event copied;
  };
  // Makes room in the next piece, once the GPU is done with it.
  std::byte* next_piece(size_t bytes);
  DeviceBuffer allocate(size_t bytes, const char* field) const;
  void hand_over(const DeviceBuffer& filled) const;
  void copy_in_parallel(std::byte* to, const std::byte* from, size_t bytes) const;

  const Stream& stream_;
  const DeviceMemory memory_;
  const bool in_place_;
  const int threads_;
  const size_t piece_bytes_;
  std::array<Piece, 2> pieces_;
  size_t piece_ = 0;  // the one that is being filled
};

}  // namespace slicellm::cuda
