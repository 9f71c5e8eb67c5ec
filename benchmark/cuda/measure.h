#pragma once

#include <functional>

#include "cuda/memory.h"
#include "cuda/runtime.h"

// What the kernel benchmarks measure with: times on the device, and the two rates of the machine
// that their times are held against.
namespace slicellm::cuda {

class Meter {
 public:
  Meter();

  const DeviceInfo& device() const { return device_; }
  const Stream& stream() const { return stream_; }
  const DeviceMemory& memory() const { return memory_; }  // unlimited
  double copy_rate() const { return copy_rate_; }         // bytes read + bytes written a second
  double matrix_rate() const { return matrix_rate_; }     // float operations a second of mma.sync

  // Seconds of one of `count` launches in a row, launch(0) to launch(count - 1) on stream(): the
  // median of `repeats` such rows. Launches are queued behind other work, so that none waits for
  // the host.
  double time(int count, int repeats, const std::function<void(int)>& launch) const;

  // How often to launch what should take `seconds`, to measure for `budget` seconds or so.
  static int launches_for(double seconds, double budget, int least);

  // The least time in which `bytes` can be moved and `operations` done.
  double roofline(double bytes, double operations) const;

 private:
  void copy() const;

  DeviceInfo device_;
  Stream stream_;
  DeviceMemory memory_;
  DeviceBuffer from_{memory_}, to_{memory_};  // each 8 times the L2 cache
  double copy_rate_ = 0, matrix_rate_ = 0;
};

}  // namespace slicellm::cuda
