#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "cuda/memory.h"
#include "cuda/runtime.h"

namespace slicellm::cuda {

// Carries small host arrays of a step (token ids, block tables, work lists) to the device. The host
// writes into pinned memory of two steps in turn, so that it prepares one while the device may not
// yet have fetched the one before. Grows to what the largest step needs; then nothing is allocated.
// For one stream and one thread at a time.
class StepStaging {
 public:
  StepStaging(const Stream& stream, const DeviceMemory& memory)
      : stream_(stream), memory_(memory) {}

  // Starts the next step: addresses given out before are reused, in the stream's order.
  void begin();
  // Notes values for the flush; returns where they will lie on the device (16-byte aligned).
  template <class T>
  const T* put(std::span<const T> values) {
    return reinterpret_cast<const T*>(put_bytes(values.data(), values.size_bytes()));
  }
  // Enqueues the copy of everything that was put. Ends the step.
  void flush();

 private:
  static constexpr int kSteps = 2;

  // Memory is added in chunks, so that addresses stay.
  struct Chunk {
    PinnedBuffer host[kSteps];
    DeviceBuffer device;
    size_t used = 0;
  };

  const std::byte* put_bytes(const void* values, size_t bytes);

  const Stream& stream_;
  const DeviceMemory memory_;
  std::vector<Chunk> chunks_;
  size_t chunk_ = 0;  // the one that is being filled
  int step_ = 0;
  Event copied_[kSteps];
};

}  // namespace slicellm::cuda
