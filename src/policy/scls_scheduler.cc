#include "policy/scls_scheduler.h"

#include <algorithm>

#include "policy/static_batch.h"

namespace slicellm {

std::vector<PolicyParameter> scls_parameters() {
  return {{"slice", "128", "tokens a task gets before it is scheduled again"},
          {"lambda", "0.5", "share of the least load after which the next schedule is due"},
          {"gamma_ms", "3000", "time between two schedules at least"},
          {"memory_fraction", "0.9", "share of the KV blocks that a batch may need"}};
}

SclsOptions scls_options(const Parameters& parameters) {
  return {.slice = parameters.integer("slice", 1, 1 << 20),
          .lambda = parameters.number("lambda", 0, 100),
          .gamma = parameters.positive("gamma_ms", 1e9) / 1e3,
          .memory_fraction = parameters.positive("memory_fraction", 1)};
}

std::vector<int32_t> scls_partition(
    std::span<const int32_t> lengths, const std::function<bool(int32_t rows, int32_t length)>& fits,
    const std::function<double(int32_t rows, int32_t length)>& cost) {
  const int32_t n = static_cast<int32_t>(lengths.size());
  std::vector<double> best(n + 1, std::numeric_limits<double>::infinity());
  std::vector<int32_t> last(n + 1, 0);  // rows of the last batch
  best[0] = 0;
  for (int32_t i = 1; i <= n; ++i) {
    const int32_t length = lengths[i - 1];
    for (int32_t rows = 1; rows <= i && (rows == 1 || fits(rows, length)); ++rows) {
      const double total = best[i - rows] + cost(rows, length);
      if (total < best[i]) {
        best[i] = total;
        last[i] = rows;
      }
    }
  }
  std::vector<int32_t> sizes;
  for (int32_t i = n; i > 0; i -= last[i]) sizes.push_back(last[i]);
  std::reverse(sizes.begin(), sizes.end());
  return sizes;
}

void SclsScheduler::remove(int64_t key) {
  const auto is_it = [key](const SclsItem& item) { return item.key == key; };
  if (std::erase_if(pool_, is_it) > 0) return;
  for (size_t k = 0; k < queues_.size(); ++k) {
    for (auto batch = queues_[k].begin(); batch != queues_[k].end(); ++batch) {
      if (std::erase_if(batch->items, is_it) == 0) continue;
      if (batch->items.empty()) {
        loads_[k] -= batch->seconds;
        queues_[k].erase(batch);
      }
      return;
    }
  }
}

void SclsScheduler::schedule(double now, const View& machine) {
  times_.fit();
  std::stable_sort(pool_.begin(), pool_.end(),
                   [](const SclsItem& a, const SclsItem& b) { return a.length < b.length; });
  std::vector<int32_t> lengths;
  lengths.reserve(pool_.size());
  for (const SclsItem& item : pool_) lengths.push_back(item.length);
  const double blocks = options_.memory_fraction * machine.total_blocks;
  const auto fits = [&](int32_t rows, int32_t length) {
    return rows <= machine.max_rows &&
           StaticBatch::blocks_needed(rows, length, options_.slice, machine) <= blocks;
  };
  const auto cost = [this](int32_t rows, int32_t length) {
    return times_.batch(rows, length, options_.slice);
  };
  std::vector<SclsBatch> batches;
  auto next = pool_.begin();
  for (int32_t rows : scls_partition(lengths, fits, cost)) {
    SclsBatch& batch = batches.emplace_back();
    batch.items.assign(next, next + rows);
    batch.seconds = cost(rows, batch.items.back().length);
    next += rows;
  }
  pool_.clear();
  std::stable_sort(batches.begin(), batches.end(),
                   [](const SclsBatch& a, const SclsBatch& b) { return a.seconds > b.seconds; });
  for (SclsBatch& batch : batches) {
    const auto least = std::min_element(loads_.begin(), loads_.end());
    *least += batch.seconds;
    queues_[static_cast<size_t>(least - loads_.begin())].push_back(std::move(batch));
  }
  const double load = *std::min_element(loads_.begin(), loads_.end());
  next_ = now + std::max(options_.lambda * load, options_.gamma);
}

SclsBatch SclsScheduler::take(int32_t instance) {
  SclsBatch batch = std::move(queues_[instance].front());
  queues_[instance].pop_front();
  return batch;
}

void SclsScheduler::returned(int32_t instance, double predicted) {
  // Never below what its queue holds, whatever rounding did.
  loads_[instance] = std::max(0.0, loads_[instance] - predicted);
}

void SclsScheduler::describe(JsonObject& json) const {
  int64_t queued = 0;
  for (const auto& queue : queues_) {
    for (const SclsBatch& batch : queue) queued += static_cast<int64_t>(batch.items.size());
  }
  json.add("waiting", static_cast<int64_t>(pool_.size())).add("queued", queued);
  json.add("load_s", loads_).add("prefill_s", times_.prefill()).add("step_s", times_.step());
}

}  // namespace slicellm
