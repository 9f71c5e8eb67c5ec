#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "cuda/kv_storage.h"
#include "cuda/runtime.h"
#include "slicellm/batch.h"

namespace slicellm::cuda {

// The host pool of an executor, and the copies between it and the KV storage: on a stream of their
// own, so that they run beside steps that have nothing to do with them.
//
// No copy meets a step that touches what it touches:
//  * Copies keep their order among themselves, and nothing else touches host blocks.
//  * A step's copies start when all steps before it have ended: what goes to the host has been
//    written, and where something comes back to is not in use any more.
//  * A step starts when the copies are done that it depends on, its own or older ones: those into a
//    block that it reads, and those into or out of a block that it writes. It may read what is on
//    its way to the host (the prefix that a task shares with others).
// For one thread at a time.
class KvSwapper {
 public:
  // Host memory is taken as it is first used. Both references must outlive the swapper; `compute`
  // is the stream of the steps.
  KvSwapper(CudaKvStorage& kv, const Stream& compute, int32_t host_blocks);
  ~KvSwapper();  // waits for the copies

  int32_t host_blocks() const { return host_blocks_; }

  // The three calls of a step, in this order. First, its copies, which must stay as they are until
  // the last call; `begin` has been recorded on the compute stream after all steps before. Throws
  // Error(invalid_argument) for a block outside the pools.
  void take(std::span<const KvCopy> copies, const Event& begin);
  // Second, makes the compute stream wait for the copies that `sequences` depend on, or for all.
  void wait_for(std::span<const BatchSequence> sequences);
  void wait_for_all() { wait_for(taken_); }
  // Whether the step's copies were not waited for.
  bool are_beside() const { return !copies_.empty(); }
  // Third, when all of the step is on the compute stream: starts the copies, unless the step had to
  // wait for them, so that its launches do not come behind theirs.
  void start();

 private:
  // Steps with copies are numbered from 1 on; 0 stands for none.
  using Number = uint64_t;
  struct Last {              // copies of a device block
    Number in = 0, any = 0;  // into it; into it or out of it
  };
  // Later steps with copies use an event again: who waits for it then waits for more, never less.
  static constexpr size_t kEvents = 8;

  std::byte* host_block(int32_t index);
  void wait_for(Number step);

  CudaKvStorage& kv_;
  const Stream& compute_;
  int32_t host_blocks_;
  size_t piece_blocks_;  // host memory is taken in pieces of so many blocks
  std::vector<PinnedBuffer> pieces_;
  std::vector<Last> last_;  // by device block
  Number taken_ = 0;
  std::span<const KvCopy> copies_;  // taken, not started
  Number awaited_ = 0;  // the compute stream waits for this step's copies, and older ones
  std::array<Event, kEvents> copied_;  // by number, in turn
  Stream stream_;
};

}  // namespace slicellm::cuda
