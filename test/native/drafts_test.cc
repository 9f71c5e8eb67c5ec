// Prompt lookup and what drafts may cost, worked out by hand.
#include "engine/drafts.h"

#include <cmath>
#include <limits>
#include <memory>

#include "check.h"

using namespace slicellm;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

std::vector<int32_t> found(const std::vector<int32_t>& tokens, int32_t most) {
  std::vector<int32_t> drafts = {99};
  look_up(tokens, most, drafts);
  return drafts;
}

void test_look_up() {
  using Ids = std::vector<int32_t>;
  CHECK(found({1, 2, 3, 4, 5, 1, 2, 3}, 2) == (Ids{4, 5}));
  CHECK(found({1, 2, 3, 4, 5, 9, 2, 3}, 2) == (Ids{4, 5}));        // two tokens are enough
  CHECK(found({1, 2, 3, 4, 5, 9, 8, 3}, 2).empty());               // one is not
  CHECK(found({2, 3, 4, 2, 3, 5, 9, 2, 3}, 1) == (Ids{5}));        // the last place
  CHECK(found({1, 2, 3, 4, 2, 3, 5, 1, 2, 3}, 1) == (Ids{4}));     // three tokens before two
  CHECK(found({1, 2, 3, 1, 2}, 7) == (Ids{3, 1, 2, 3, 1, 2, 3}));  // through its own drafts
  CHECK(found({6, 7, 7, 7}, 3) == (Ids{7, 7, 7}));
  CHECK(found({7, 7, 7}, 1) == (Ids{7}));
  for (const Ids& shortest : {Ids{}, Ids{1}, Ids{1, 1}, Ids{1, 2, 1}}) {
    CHECK(found(shortest, 4).empty());
  }
  CHECK(found({1, 2, 3, 1, 2}, 0).empty());
  CHECK(found({1, 2, 3, 1, 2}, -3).empty());
}

void test_history() {
  auto near = [](double a, double b) { return std::abs(a - b) < 1e-12; };
  DraftHistory history;
  CHECK(near(history.acceptance(), 0.5));
  history.note(2, 2);  // 1 - 0.5 * 0.9 * 0.9
  CHECK(near(history.acceptance(), 0.595));
  history.note(2, 1);  // right: 0.6355; wrong: * 0.9
  CHECK(near(history.acceptance(), 0.57195));
  history.note(0, 0);  // back towards 0.5
  CHECK(near(history.acceptance(), 0.57195 - 0.01 * 0.07195));
}

void test_budget() {
  // l(1) .. l(5) in ms; then 2.5 ms a row.
  const double seconds[] = {0.010, 0.011, 0.012, 0.013, 0.020};
  const auto latency = make_table_latency_model(seconds, 0, 0);
  const StepFeatures one{.tokens = 1, .rows = 1, .context = 30};
  auto take = [&](const StepFeatures& step, double tpot, double acceptance, int32_t most) {
    return DraftBudget(*latency, step, tpot).take(30, acceptance, most);
  };
  // Tokens / ms with acceptance 1/2: 1/10, 1.5/11, 1.75/12, 1.875/13 (less), 1.9375/20.
  CHECK(take(one, kInfinity, 0.5, 9) == 2);
  CHECK(take(one, kInfinity, 0.5, 1) == 1);
  CHECK(take(one, kInfinity, 0.5, 0) == 0);
  CHECK(take(one, kInfinity, 0.05, 9) == 0);  // 1.05/11
  // With acceptance 1: 4/13 before 5/20, then 6/22.5, 7/25, 8/27.5, 9/30.
  CHECK(take(one, kInfinity, 1, 8) == 3);
  CHECK(take(one, 0.0125, 1, 9) == 2);  // l(4) is beyond the TPOT
  CHECK(take(one, 0.009, 1, 9) == 0);   // which is lost already: nothing may be made longer
  // Two rows: 2/11, then 3/12, 4/13.
  const StepFeatures two{.tokens = 2, .rows = 2, .context = 60};
  DraftBudget budget(*latency, two, kInfinity);
  CHECK(budget.take(40, 1, 1) == 1 && budget.take(20, 1, 1) == 1);
  CHECK(budget.step().tokens == 4 && budget.step().rows == 4);
  CHECK(budget.step().context == 60 + 41 + 21);
  CHECK(budget.take(20, 1, 1) == 0);  // 5/20
  CHECK(budget.step().tokens == 4);
}

}  // namespace

int main() {
  test_look_up();
  test_history();
  test_budget();
  return test::check_result();
}
