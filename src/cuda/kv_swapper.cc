#include "cuda/kv_swapper.h"

#include <algorithm>
#include <utility>

#include "engine/executors.h"

namespace slicellm::cuda {
namespace {

constexpr size_t kPieceBytes = size_t{64} << 20;

}  // namespace

KvSwapper::KvSwapper(CudaKvStorage& kv, const Stream& compute, int32_t host_blocks)
    : kv_(kv),
      compute_(compute),
      host_blocks_(host_blocks),
      piece_blocks_(std::max<size_t>(1, kPieceBytes / kv.block_bytes())),
      pieces_((static_cast<size_t>(host_blocks) + piece_blocks_ - 1) / piece_blocks_),
      last_(static_cast<size_t>(kv.num_blocks())) {}

KvSwapper::~KvSwapper() { cudaStreamSynchronize(stream_); }

std::byte* KvSwapper::host_block(int32_t index) {
  const auto i = static_cast<size_t>(index);
  PinnedBuffer& piece = pieces_[i / piece_blocks_];
  if (piece.bytes() == 0) {
    const size_t first = i / piece_blocks_ * piece_blocks_;
    const size_t blocks = std::min(piece_blocks_, static_cast<size_t>(host_blocks_) - first);
    piece = PinnedBuffer(blocks * kv_.block_bytes(), "host_kv_bytes");
  }
  return piece.get() + i % piece_blocks_ * kv_.block_bytes();
}

void KvSwapper::take(std::span<const KvCopy> copies, const Event& begin) {
  copies_ = {};
  if (copies.empty()) return;
  for (const KvCopy& c : copies) check_copy(c, kv_.num_blocks(), host_blocks_);
  ++taken_;
  for (const KvCopy& c : copies) {
    Last& last = last_[static_cast<size_t>(c.device_block)];
    last.any = taken_;
    if (!c.to_host) last.in = taken_;
  }
  copies_ = copies;
  stream_.wait(begin);
}

void KvSwapper::start() {
  if (copies_.empty()) return;
  for (const KvCopy& c : std::exchange(copies_, {})) {
    if (c.to_host) {
      kv_.start_copy_to_host(c.device_block, host_block(c.host_block), stream_);
    } else {
      kv_.start_copy_from_host(c.device_block, host_block(c.host_block), stream_);
    }
  }
  copied_[taken_ % kEvents].record(stream_);
}

void KvSwapper::wait_for(std::span<const BatchSequence> sequences) {
  if (awaited_ == taken_) return;
  Number needed = 0;
  for (const BatchSequence& s : sequences) {
    const auto first_written = static_cast<size_t>(s.past / kv_.layout().block_tokens);
    for (size_t i = 0; i < s.blocks.size(); ++i) {
      const Last& last = last_[static_cast<size_t>(s.blocks[i])];
      needed = std::max(needed, i < first_written ? last.in : last.any);
    }
  }
  wait_for(needed);
}

void KvSwapper::wait_for(Number step) {
  if (step <= awaited_) return;
  if (step == taken_) start();
  compute_.wait(copied_[step % kEvents]);
  awaited_ = step;
}

}  // namespace slicellm::cuda
