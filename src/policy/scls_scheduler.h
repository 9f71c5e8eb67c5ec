#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <span>
#include <vector>

#include "policy/json.h"
#include "policy/parameters.h"
#include "policy/serving_times.h"

namespace slicellm {

struct SclsOptions {
  int32_t slice = 128;           // S: most tokens a task gets before it is scheduled again
  double lambda = 0.5;           // share of the least load after which the next schedule is due
  double gamma = 3;              // seconds between two schedules at least
  double memory_fraction = 0.9;  // zeta: share of the KV blocks that a batch may need
};

std::vector<PolicyParameter> scls_parameters();
SclsOptions scls_options(const Parameters& parameters);

// A task that waits, by whatever number its owner knows it.
struct SclsItem {
  int64_t key = 0;
  int32_t length = 0;  // tokens of its input: prompt + output so far
};

struct SclsBatch {
  std::vector<SclsItem> items;
  double seconds = 0;  // predicted
};

// Sizes of consecutive batches over `lengths` (ascending) with the least sum of cost(rows, length
// of the longest). One row always fits. O(n * the largest batch that fits).
std::vector<int32_t> scls_partition(
    std::span<const int32_t> lengths, const std::function<bool(int32_t rows, int32_t length)>& fits,
    const std::function<double(int32_t rows, int32_t length)>& cost);

// The central part of SCLS (Cheng et al., arXiv 2406.13511): a pool of waiting tasks, of which
// every T = max(lambda * least load, gamma) batches are made by dynamic programming over predicted
// serving times and offloaded, the longest first, each to the instance with the least load
// (max-min). A schedule is due when T has passed since the last one and something waits. Policy
// scls has one instance; the dispatcher scls any number. Copyable: a proposal is a copy.
class SclsScheduler {
 public:
  SclsScheduler(const SclsOptions& options, int32_t instances)
      : options_(options), loads_(instances), queues_(instances) {}

  const SclsOptions& options() const { return options_; }
  ServingTimes& times() { return times_; }

  void add(SclsItem item) { pool_.push_back(item); }
  void remove(int64_t key);  // from the pool or a queue; unknown keys are ignored
  const std::vector<SclsItem>& pool() const { return pool_; }

  // When the next schedule is due; infinity while nothing waits.
  double due() const { return pool_.empty() ? std::numeric_limits<double>::infinity() : next_; }
  // `machine`: the rows and KV blocks of every instance. The serving times must be seeded.
  void schedule(double now, const View& machine);

  bool has_batch(int32_t instance) const { return !queues_[instance].empty(); }
  SclsBatch take(int32_t instance);                   // its load stays until it returned
  void returned(int32_t instance, double predicted);  // SclsBatch::seconds
  std::span<const double> loads() const { return loads_; }
  // Adds waiting and queued tasks, loads, and p1 .. p4 and d1 .. d4 as of the last schedule.
  void describe(JsonObject& json) const;

 private:
  SclsOptions options_;
  ServingTimes times_;
  std::vector<SclsItem> pool_;  // in order of coming
  double next_ = 0;
  std::vector<double> loads_;  // predicted seconds that each instance still has
  std::vector<std::deque<SclsBatch>> queues_;
};

}  // namespace slicellm
