#include "slicellm/clock.h"

#include <atomic>
#include <chrono>

namespace slicellm {
namespace {

class SteadyClock final : public Clock {
 public:
  double now() const override {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }
  bool advance_to(double) override { return false; }

 private:
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

class VirtualClock final : public Clock {
 public:
  double now() const override { return now_.load(); }
  bool advance_to(double time) override {
    double now = now_.load();
    while (now < time && !now_.compare_exchange_weak(now, time)) {
    }
    return true;
  }

 private:
  std::atomic<double> now_{0};
};

}  // namespace

std::shared_ptr<Clock> make_steady_clock() { return std::make_shared<SteadyClock>(); }
std::shared_ptr<Clock> make_virtual_clock() { return std::make_shared<VirtualClock>(); }

}  // namespace slicellm
