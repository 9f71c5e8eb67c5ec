#pragma once

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

}  // namespace slicellm
