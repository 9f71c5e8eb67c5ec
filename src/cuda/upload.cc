#include "cuda/upload.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "format/parallel.h"

namespace slicellm::cuda {

Uploader::Uploader(const Stream& stream, const DeviceMemory& memory, bool in_place, int threads,
                   size_t piece_bytes)
    : stream_(stream),
      memory_(memory),
      in_place_(in_place),
      threads_(threads),
      piece_bytes_(piece_bytes) {}

DeviceBuffer Uploader::linear(const LinearPacker& packer) {
  DeviceBuffer buffer = allocate(packer.layout().bytes, "weights");
  const LinearParts parts = packer.parts();
  size_t tile_bytes = 0;
  for (const LinearPart& part : parts) tile_bytes += part.tile_bytes;
  const int64_t tiles = packer.layout().tiles;
  const int64_t most =
      std::max<int64_t>(1, static_cast<int64_t>(piece_bytes_ / std::max<size_t>(1, tile_bytes)));
  for (int64_t begin = 0; begin < tiles; begin += most) {
    const int64_t end = std::min(begin + most, tiles);
    const auto count = static_cast<size_t>(end - begin);
    std::array<std::byte*, 4> there, here;  // where the parts of tile `begin` lie
    for (size_t p = 0; p < parts.size(); ++p) {
      there[p] = buffer.get() + parts[p].at + static_cast<size_t>(begin) * parts[p].tile_bytes;
    }
    if (in_place_) {
      packer.pack(begin, end, there);
      continue;
    }
    here[0] = next_piece(count * tile_bytes);
    for (size_t p = 1; p < parts.size(); ++p) {
      here[p] = here[p - 1] + count * parts[p - 1].tile_bytes;
    }
    packer.pack(begin, end, here);
    for (size_t p = 0; p < parts.size(); ++p) {
      stream_.copy(there[p], here[p], count * parts[p].tile_bytes, cudaMemcpyHostToDevice);
    }
    pieces_[piece_].copied.record(stream_);
  }
  hand_over(buffer);
  return buffer;
}

DeviceBuffer Uploader::array(const void* data, size_t bytes, const char* field) {
  DeviceBuffer buffer = allocate(bytes, field);
  const auto* from = static_cast<const std::byte*>(data);
  for (size_t at = 0; at < bytes; at += piece_bytes_) {
    const size_t size = std::min(piece_bytes_, bytes - at);
    std::byte* here = in_place_ ? buffer.get() + at : next_piece(size);
    copy_in_parallel(here, from + at, size);
    if (in_place_) continue;
    stream_.copy(buffer.get() + at, here, size, cudaMemcpyHostToDevice);
    pieces_[piece_].copied.record(stream_);
  }
  hand_over(buffer);
  return buffer;
}

void Uploader::finish() {
  stream_.synchronize();
  for (Piece& piece : pieces_) piece.memory = PinnedBuffer();
}

std::byte* Uploader::next_piece(size_t bytes) {
  piece_ = (piece_ + 1) % pieces_.size();
  Piece& piece = pieces_[piece_];
  piece.copied.synchronize();
  if (bytes > piece.memory.bytes()) piece.memory = PinnedBuffer(std::bit_ceil(bytes), "staging");
  return piece.memory.get();
}

DeviceBuffer Uploader::allocate(size_t bytes, const char* field) const {
  return in_place_ ? DeviceBuffer::shared(memory_, bytes, field)
                   : DeviceBuffer(memory_, bytes, field);
}

void Uploader::hand_over(const DeviceBuffer& filled) const {
  if (in_place_) filled.hand_over(stream_);
}

void Uploader::copy_in_parallel(std::byte* to, const std::byte* from, size_t bytes) const {
  constexpr size_t kGrain = size_t{1} << 20;
  const auto grains = static_cast<int64_t>((bytes + kGrain - 1) / kGrain);
  parallel_for(grains, 1, threads_, [&](int64_t begin, int64_t end) {
    const size_t first = static_cast<size_t>(begin) * kGrain;
    const size_t last = std::min(static_cast<size_t>(end) * kGrain, bytes);
    std::memcpy(to + first, from + first, last - first);
  });
}

}  // namespace slicellm::cuda
