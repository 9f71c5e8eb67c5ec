#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace slicellm {

// What is believed of the output length of one class, learned from tasks as they run: the hazard of
// ending at each token by the product-limit estimator (Kaplan and Meier, 1958), so that tasks that
// were given up early count for the tokens they did produce. Lengths fall into bins: single tokens
// to 32, then bins that grow by an eighth. A weak prior keeps the first estimates finite: a length
// uniform up to the cap. Not thread-safe.
class LengthBelief {
 public:
  explicit LengthBelief(int32_t max_tokens);

  void observe_token(int32_t produced);  // a task has produced so many and did not end there
  void observe_end(int32_t produced);    // a task ended by itself after so many

  // Of a task that has produced `produced` tokens and goes on. From tables that are renewed as
  // observations come in; O(log bins).
  double mean_remaining(int32_t produced) const { return at(produced).mean; }
  // The remaining length that 90 % (10 %) of such tasks do not exceed; at least 1.
  double high_remaining(int32_t produced) const { return at(produced).high; }
  double low_remaining(int32_t produced) const { return at(produced).low; }
  // The greatest P(ends within the next n) / E[tokens until it ends, at most n] over all n: the
  // Gittins index of a job of unknown size (Gittins, 1979), per token.
  double index(int32_t produced) const { return at(produced).index; }
  // The same for a task that has not begun and costs `overhead` tokens before its first.
  double first_index(double overhead) const { return best_ratio(0, overhead); }

 private:
  struct Bin {
    int32_t first = 0, last = 0;    // lengths, both included
    double at_risk = 0, ended = 0;  // weighted counts over the bin's tokens
    // Of a task at the bin's start:
    double mean = 1, high = 1, low = 1, index = 0;
    double pass = 0, cost = 0;  // P(not ending in the bin), expected tokens in it
  };
  size_t bin_of(int32_t length) const;
  const Bin& at(int32_t produced) const { return bins_[bin_of(produced + 1)]; }
  double quantile(size_t bin, double q) const;
  double best_ratio(size_t bin, double overhead) const;
  void renew();

  std::vector<Bin> bins_;
  int64_t ends_ = 0, next_renewal_ = 1;
};

// What is believed of one task's length: what it was told (> 0), else what its class taught.
class TaskLength {
 public:
  TaskLength() = default;
  TaskLength(const LengthBelief* learned, int32_t told) : learned_(learned), told_(told) {}

  // As in LengthBelief.
  double mean_remaining(int32_t produced) const {
    return told_ > 0 ? rest(produced) : learned_->mean_remaining(produced);
  }
  double high_remaining(int32_t produced) const {
    return told_ > 0 ? rest(produced) : learned_->high_remaining(produced);
  }
  double low_remaining(int32_t produced) const {
    return told_ > 0 ? rest(produced) : learned_->low_remaining(produced);
  }
  double index(int32_t produced) const {
    return told_ > 0 ? 1 / rest(produced) : learned_->index(produced);
  }
  double first_index(double overhead) const {
    return told_ > 0 ? 1 / (told_ + overhead) : learned_->first_index(overhead);
  }

 private:
  double rest(int32_t produced) const { return std::max(1, told_ - produced); }

  const LengthBelief* learned_ = nullptr;
  int32_t told_ = 0;
};

}  // namespace slicellm
