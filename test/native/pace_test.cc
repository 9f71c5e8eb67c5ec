// What pace believes: lengths against Kaplan and Meier's estimator, step times, and the demand
// test.
#include <cmath>
#include <random>
#include <vector>

#include "check.h"
#include "policy/length_belief.h"
#include "policy/pace_demand.h"
#include "policy_table.h"

using namespace slicellm;

namespace {

constexpr int32_t kCap = 30;  // single bins only

struct Observed {
  int32_t length = 0;
  bool ended = false;  // false: given up after so many tokens
};

// Mean length of what survives by the product-limit estimator, straight from its definition.
double product_limit_mean(const std::vector<Observed>& tasks) {
  double alive = 1, mean = 0;
  for (int32_t k = 1; k <= kCap; ++k) {
    mean += alive;
    double at_risk = 0, ended = 0;
    for (const Observed& task : tasks) {
      // One that was given up after k tokens did not end there.
      at_risk += task.length >= k;
      ended += task.ended && task.length == k;
    }
    if (at_risk > 0) alive *= 1 - ended / at_risk;
  }
  return mean;
}

void lengths_are_learned_from_censored_tasks() {
  std::mt19937 rng(7);
  for (double hazard : {0.08, 0.25}) {
    std::vector<Observed> tasks;
    LengthBelief belief(kCap);
    double naive = 0, ends = 0;
    for (int i = 0; i < 3000; ++i) {
      Observed task;
      std::uniform_real_distribution<double> uniform(0, 1);
      const int32_t given_up_after = 1 + static_cast<int32_t>(rng() % 25);
      while (!task.ended && task.length < given_up_after) {
        ++task.length;
        task.ended = uniform(rng) < hazard || task.length == kCap;
      }
      tasks.push_back(task);
      for (int32_t k = 1; k < task.length; ++k) belief.observe_token(k);
      if (task.ended) {
        belief.observe_end(task.length);
        naive += task.length, ++ends;
      } else {
        belief.observe_token(task.length);
      }
    }
    // Tables are renewed at least once in 256 ends.
    const double expected = product_limit_mean(tasks);
    CHECK_MESSAGE(std::abs(belief.mean_remaining(0) - expected) < 0.06 * expected,
                  "mean " + std::to_string(belief.mean_remaining(0)) + ", product limit " +
                      std::to_string(expected));
    // The mean of those that ended would be far too short.
    if (hazard < 0.1) CHECK(naive / ends < 0.8 * expected);
  }
}

void one_length_is_learned_exactly() {
  LengthBelief belief(kCap);
  CHECK(std::abs(belief.mean_remaining(0) - 0.5 * (kCap + 1)) < 0.01);  // uniform up to the cap
  for (int i = 0; i < 1000; ++i) {
    for (int32_t k = 1; k < 7; ++k) belief.observe_token(k);
    belief.observe_end(7);
  }
  CHECK(std::abs(belief.mean_remaining(0) - 7) < 0.1);
  CHECK(std::abs(belief.mean_remaining(4) - 3) < 0.1);
  CHECK(belief.high_remaining(0) == 7 && belief.low_remaining(0) == 7);
  // Nothing ends before 7 more tokens: 1 / 7 a token; after 5 of them, 1 / 2.
  CHECK(std::abs(belief.index(0) - 1.0 / 7) < 0.005);
  CHECK(std::abs(belief.index(5) - 1.0 / 2) < 0.01);
  // Three tokens' worth of prefill: 1 / 10.
  CHECK(std::abs(belief.first_index(3) - 1.0 / 10) < 0.005);
}

void a_step_curve_is_the_best_of_smaller_batches() {
  const auto latency = test::synthetic_step_times();
  const StepCurve curve(*latency, 32, 100);
  double best = std::numeric_limits<double>::infinity();
  for (int32_t b = 1; b <= 32; ++b) {
    best = std::min(best, latency->decode_step(b, 100) / b);
    CHECK(std::abs(curve.per_token(b) - best) < 1e-12);
    CHECK(curve.step(b) == latency->decode_step(b, 100));
    CHECK(curve.best_rows(b) <= b);
    CHECK(std::abs(curve.step(curve.best_rows(b)) / curve.best_rows(b) - best) < 1e-12);
  }
  const double between = 0.75 * curve.per_token(4) + 0.25 * curve.per_token(5);
  CHECK(std::abs(curve.per_token(4.25) - between) < 1e-12);
  CHECK(curve.per_token(0.2) == curve.per_token(1) && curve.per_token(99) == curve.per_token(32));
}

void demand_fits_up_to_the_share_of_time() {
  const auto latency = test::synthetic_step_times();
  const StepCurve curve(*latency, 8, 100);
  DemandGrid::Task task;
  for (int g = 0; g < DemandGrid::kMoments; ++g) task.tokens[g] = 10;
  // Ten tokens of one task take ten steps of one row; with another such task, ten of two rows.
  for (int tasks = 1; tasks <= 4; ++tasks) {
    const double needed = 10 * tasks * curve.per_token(tasks);
    for (bool enough : {true, false}) {
      DemandGrid grid((enough ? 1.001 : 0.999) * needed / 0.8);
      for (int i = 1; i < tasks; ++i) grid.add(task);
      CHECK(grid.fits(task, curve, {}, 0.8) == enough);
    }
  }
  // Prefill and what is held for others count beside it.
  DemandGrid grid(10 * curve.step(1) + 0.1);
  CHECK(grid.fits(task, curve, {}, 1));
  DemandGrid::Task reserve;
  reserve.other[0] = 0.11;
  CHECK(!grid.fits(task, curve, reserve, 1));
}

}  // namespace

int main() {
  lengths_are_learned_from_censored_tasks();
  one_length_is_learned_exactly();
  a_step_curve_is_the_best_of_smaller_batches();
  demand_fits_up_to_the_share_of_time();
  return test::check_result();
}
