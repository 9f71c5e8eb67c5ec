#include "cuda/staging.h"

#include <algorithm>
#include <cstring>

namespace slicellm::cuda {
namespace {

constexpr size_t kAlignment = 16;
constexpr size_t kLeastChunk = size_t{64} << 10;

}  // namespace

void StepStaging::begin() {
  step_ = (step_ + 1) % kSteps;
  copied_[step_].synchronize();
  chunk_ = 0;
  for (Chunk& chunk : chunks_) chunk.used = 0;
}

const std::byte* StepStaging::put_bytes(const void* values, size_t bytes) {
  const size_t padded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  while (chunk_ < chunks_.size() &&
         chunks_[chunk_].device.bytes() - chunks_[chunk_].used < padded) {
    ++chunk_;
  }
  if (chunk_ == chunks_.size()) {
    const size_t size =
        std::max({padded, kLeastChunk, chunks_.empty() ? 0 : 2 * chunks_.back().device.bytes()});
    Chunk chunk{.host = {}, .device = DeviceBuffer(memory_, size, "staging")};
    for (PinnedBuffer& host : chunk.host) host = PinnedBuffer(size, "staging");
    chunks_.push_back(std::move(chunk));
  }
  Chunk& chunk = chunks_[chunk_];
  if (bytes > 0) std::memcpy(chunk.host[step_].get() + chunk.used, values, bytes);
  const std::byte* where = chunk.device.get() + chunk.used;
  chunk.used += padded;
  return where;
}

void StepStaging::flush() {
  for (const Chunk& chunk : chunks_) {
    stream_.copy(chunk.device.get(), chunk.host[step_].get(), chunk.used, cudaMemcpyHostToDevice);
  }
  copied_[step_].record(stream_);
}

}  // namespace slicellm::cuda
