#pragma once

#include <array>
#include <cstdint>

#include "latency/nnls.h"
#include "slicellm/latency_model.h"

namespace slicellm {

// SCLS's belief about static batches of N rows and input length L (Cheng et al., arXiv 2406.13511):
//   prefill   Tp(N, L) = p1 N L + p2 N + p3 L + p4
//   a step    td(l, N) = d1 N l + d2 N + d3 l + d4     with l tokens a row in KV
// in seconds, fitted by non-negative least squares on relative errors to what was measured. Before
// anything is, the points are what a latency model predicts for a grid of batches; they stay, each
// with the weight of one measurement.
class ServingTimes {
 public:
  using Coefficients = std::array<double, 4>;

  bool seeded() const { return seeded_; }
  void seed(const LatencyModel& latency, int32_t max_rows);
  void observe_prefill(int32_t rows, int32_t length, double seconds);
  void observe_step(int32_t rows, int32_t length, double seconds);
  // Takes in what was observed since the last call.
  void fit();

  // T(N, L, S) = Tp(N, L) + sum of td(l, N) for l from L to L + S - 1.
  double batch(int32_t rows, int32_t length, int32_t tokens) const;
  const Coefficients& prefill() const { return prefill_.coefficients; }
  const Coefficients& step() const { return step_.coefficients; }

 private:
  struct Fit {  // normal equations in the first four places
    NnlsMatrix a{};
    NnlsVector b{};
    Coefficients coefficients{};
    void add(double rows, double length, double seconds);
    void solve();
    double at(double rows, double length) const;
  };
  Fit prefill_, step_;
  bool seeded_ = false;
};

}  // namespace slicellm
