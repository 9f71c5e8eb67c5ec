#pragma once

#include <memory>

namespace slicellm {

// The only source of time in the core. Seconds since the clock was made.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual double now() const = 0;

  // Real clocks let the engine block until `time` on its own condition variable; a virtual clock
  // jumps there at once. True means that time has been advanced and no waiting is needed.
  virtual bool advance_to(double time) = 0;
};

// Real time, by the system's monotonic clock.
std::shared_ptr<Clock> make_steady_clock();

// Time that moves only by advance_to, and only forward. Thread-safe.
std::shared_ptr<Clock> make_virtual_clock();

}  // namespace slicellm
