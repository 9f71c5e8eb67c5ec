#include "engine/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace slicellm {
namespace {

// The finaliser of splitmix64 (Steele, Lea, Flood 2014): a bijection whose bits are well mixed.
uint64_t mix(uint64_t x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9u;
  x ^= x >> 27;
  x *= 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// The largest logit; NaN when any is NaN or +infinity or all are -infinity.
float best_logit(std::span<const float> logits) {
  float best = -std::numeric_limits<float>::infinity();
  bool valid = true;
  for (float x : logits) {
    valid &= x <= std::numeric_limits<float>::max();
    best = x > best ? x : best;
  }
  if (!valid || best == -std::numeric_limits<float>::infinity()) {
    return std::numeric_limits<float>::quiet_NaN();
  }
  return best;
}

struct Better {
  std::span<const float> logits;
  bool operator()(int32_t a, int32_t b) const {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  }
};

}  // namespace

double uniform_at(uint64_t seed, uint64_t position) {
  constexpr uint64_t golden = 0x9e3779b97f4a7c15u;
  const uint64_t bits = mix(mix(seed + golden) + golden * (position + 1));
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

void Sampler::sample(const Sampling& sampling, std::span<const float> logits,
                     std::span<const int32_t> seen, uint64_t position, RowResult& result) {
  float best = best_logit(logits);
  if (std::isnan(best)) {
    result.invalid = true;
    return;
  }
  const std::span<const float> raw = logits;
  const float raw_best = best;
  if (sampling.repetition_penalty != 1) {
    const float penalty = static_cast<float>(sampling.repetition_penalty);
    penalized_.assign(logits.begin(), logits.end());
    for (int32_t id : seen) {
      if (id < 0 || static_cast<size_t>(id) >= penalized_.size()) continue;
      float& x = penalized_[id];
      x = std::clamp(x > 0 ? x / penalty : x * penalty, -std::numeric_limits<float>::max(),
                     std::numeric_limits<float>::max());
    }
    logits = penalized_;
    best = best_logit(logits);
  }
  if (sampling.temperature == 0) {
    result.token =
        static_cast<int32_t>(std::find(logits.begin(), logits.end(), best) - logits.begin());
  } else {
    result.token = draw(sampling, logits, best, position);
  }
  if (sampling.logprobs >= 0) fill_logprobs(raw, raw_best, sampling.logprobs, result);
}

void Sampler::fill_logprobs(std::span<const float> logits, float best, int32_t top,
                            RowResult& result) {
  double sum = 0;
  for (float x : logits) sum += std::exp(static_cast<double>(x) - best);
  const double log_sum = best + std::log(sum);
  result.logprob = static_cast<float>(logits[result.token] - log_sum);

  const size_t count = std::min(static_cast<size_t>(top), logits.size());
  if (count == 0) return;
  order_.resize(logits.size());
  std::iota(order_.begin(), order_.end(), 0);
  std::partial_sort(order_.begin(), order_.begin() + count, order_.end(), Better{logits});
  for (size_t i = 0; i < count; ++i) {
    result.top_logprobs.emplace_back(order_[i], static_cast<float>(logits[order_[i]] - log_sum));
  }
}

int32_t Sampler::draw(const Sampling& sampling, std::span<const float> logits, float best,
                      uint64_t position) {
  const size_t n = logits.size();
  weights_.resize(n);
  double total = 0;
  for (size_t i = 0; i < n; ++i) {
    weights_[i] = std::exp((static_cast<double>(logits[i]) - best) / sampling.temperature);
    total += weights_[i];
  }
  const double u = uniform_at(sampling.seed, position);

  // What is kept is a prefix of the tokens in order of their logits; nothing is sorted without
  // need.
  const bool cuts_k = sampling.top_k > 0 && static_cast<size_t>(sampling.top_k) < n;
  if (!cuts_k && sampling.top_p >= 1 && sampling.min_p <= 0) {
    double left = u * total;
    for (size_t i = 0; i < n; ++i) {
      if (left < weights_[i]) return static_cast<int32_t>(i);
      left -= weights_[i];
    }
    return static_cast<int32_t>(std::find(logits.begin(), logits.end(), best) - logits.begin());
  }
  order_.resize(n);
  std::iota(order_.begin(), order_.end(), 0);
  const Better better{logits};
  size_t limit = n;
  if (cuts_k) {
    limit = static_cast<size_t>(sampling.top_k);
    std::nth_element(order_.begin(), order_.begin() + limit - 1, order_.end(), better);
    std::sort(order_.begin(), order_.begin() + limit, better);
    total = 0;
    for (size_t i = 0; i < limit; ++i) total += weights_[order_[i]];
  }
  size_t sorted = cuts_k ? limit : 0;
  size_t kept = 0;
  double mass = 0;
  while (kept < limit) {
    if (kept == sorted) {  // sort four times as many
      const size_t more = std::min(limit, std::max<size_t>(64, sorted * 4));
      if (more < n) {
        std::nth_element(order_.begin() + sorted, order_.begin() + more - 1, order_.end(), better);
      }
      std::sort(order_.begin() + sorted, order_.begin() + more, better);
      sorted = more;
    }
    const double weight = weights_[order_[kept]];
    const bool enough = sampling.top_p < 1 && mass >= sampling.top_p * total;
    if (kept > 0 && (enough || weight < sampling.min_p)) break;
    mass += weight;
    ++kept;
  }
  double left = u * mass;
  for (size_t i = 0; i < kept; ++i) {
    if (left < weights_[order_[i]]) return order_[i];
    left -= weights_[order_[i]];
  }
  return order_[0];  // u * mass rounded up to the sum
}

}  // namespace slicellm
