#include "policy/length_belief.h"

#include <algorithm>
#include <cmath>

namespace slicellm {
namespace {

constexpr int32_t kSingles = 32;   // lengths with a bin of their own
constexpr double kPrior = 2;       // tasks that the prior counts for
constexpr double kMemory = 20000;  // tokens at risk in a bin before old ones are halved

}  // namespace

LengthBelief::LengthBelief(int32_t max_tokens) {
  const double cap = std::max(1, max_tokens);
  for (int32_t first = 1; first <= max_tokens;) {
    const int32_t width = first <= kSingles ? 1 : std::max(1, first / 8);
    const int32_t last = std::min(max_tokens, first + width - 1);
    // Uniform up to the cap: of those that reach a length, 1 in (cap - length + 1) ends there.
    const double middle = 0.5 * (first + last);
    const double alive = kPrior * (cap - middle + 1) / cap * (last - first + 1);
    bins_.push_back({first, last, alive, alive / (cap - middle + 1)});
    first = last + 1;
  }
  renew();
}

size_t LengthBelief::bin_of(int32_t length) const {
  const auto after = std::upper_bound(bins_.begin(), bins_.end(), length,
                                      [](int32_t n, const Bin& bin) { return n < bin.first; });
  return static_cast<size_t>(std::max<std::ptrdiff_t>(0, after - bins_.begin() - 1));
}

void LengthBelief::observe_token(int32_t produced) {
  Bin& bin = bins_[bin_of(produced)];
  bin.at_risk += 1;
  if (bin.at_risk < kMemory) return;
  bin.at_risk /= 2;
  bin.ended /= 2;
}

void LengthBelief::observe_end(int32_t produced) {
  bins_[bin_of(produced)].ended += 1;
  observe_token(produced);
  if (++ends_ < next_renewal_) return;
  next_renewal_ = ends_ + std::clamp<int64_t>(ends_ / 4, 1, 256);
  renew();
}

void LengthBelief::renew() {
  for (Bin& bin : bins_) {
    const int32_t n = bin.last - bin.first + 1;
    const double hazard =
        &bin == &bins_.back() && n == 1 ? 1 : std::min(1.0, bin.ended / bin.at_risk);
    const double stay = 1 - hazard;
    bin.pass = n == 1 ? stay : std::pow(stay, n);
    // 1 + stay + ... + stay^(n-1): a token is produced by those that got so far.
    bin.cost = hazard > 1e-9 ? (1 - bin.pass) / hazard : n;
  }
  bins_.back().pass = 0;  // the cap ends it
  double mean = 0;
  for (size_t i = bins_.size(); i-- > 0;) {
    Bin& bin = bins_[i];
    mean = bin.cost + bin.pass * mean;
    bin.mean = std::max(1.0, mean);
  }
  for (size_t i = 0; i < bins_.size(); ++i) {
    bins_[i].high = quantile(i, 0.9);
    bins_[i].low = quantile(i, 0.1);
    bins_[i].index = best_ratio(i, 0);
  }
}

double LengthBelief::quantile(size_t bin, double q) const {
  double alive = 1;
  for (size_t i = bin; i < bins_.size(); ++i) {
    const double after = alive * bins_[i].pass;
    if (after <= 1 - q) {  // within the bin as if lengths were spread evenly over it
      const double part = (alive - (1 - q)) / std::max(alive - after, 1e-12);
      const double width = bins_[i].last - bins_[i].first + 1;
      return std::max(1.0, std::ceil(bins_[i].first - bins_[bin].first + part * width));
    }
    alive = after;
  }
  return std::max(1, bins_.back().last - bins_[bin].first + 1);
}

double LengthBelief::best_ratio(size_t bin, double overhead) const {
  double alive = 1, work = overhead, best = 0;
  for (size_t i = bin; i < bins_.size() && alive > 1e-4; ++i) {
    work += alive * bins_[i].cost;
    alive *= bins_[i].pass;
    best = std::max(best, (1 - alive) / work);
  }
  return best;
}

}  // namespace slicellm
