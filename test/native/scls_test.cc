// SCLS's parts by hand and against brute force: partition, serving times, schedule and offloading.
#include <cmath>
#include <random>

#include "check.h"
#include "policy/scls_scheduler.h"
#include "slicellm/simulation.h"

using namespace slicellm;

namespace {

using Cost = std::function<double(int32_t, int32_t)>;
using Fits = std::function<bool(int32_t, int32_t)>;

bool near(double a, double b) { return std::abs(a - b) <= 1e-9 * std::max(1.0, std::abs(b)); }

// The least sum of costs over every way to divide the tasks into batches, consecutive or not.
double best_of_all(const std::vector<int32_t>& lengths, size_t next,
                   std::vector<std::vector<int32_t>>& batches, const Fits& fits, const Cost& cost) {
  if (next == lengths.size()) {
    double total = 0;
    for (const auto& batch : batches) {
      const int32_t rows = static_cast<int32_t>(batch.size());
      const int32_t longest = *std::max_element(batch.begin(), batch.end());
      if (rows > 1 && !fits(rows, longest)) return std::numeric_limits<double>::infinity();
      total += cost(rows, longest);
    }
    return total;
  }
  double best = std::numeric_limits<double>::infinity();
  for (size_t b = 0; b < batches.size(); ++b) {
    batches[b].push_back(lengths[next]);
    best = std::min(best, best_of_all(lengths, next + 1, batches, fits, cost));
    batches[b].pop_back();
  }
  batches.push_back({lengths[next]});
  best = std::min(best, best_of_all(lengths, next + 1, batches, fits, cost));
  batches.pop_back();
  return best;
}

void partition_is_optimal() {
  std::mt19937 rng(1);
  auto pick = [&rng](int low, int high) {
    return low + static_cast<int>(rng() % static_cast<uint32_t>(high - low + 1));
  };
  for (int round = 0; round < 200; ++round) {
    std::vector<int32_t> lengths;
    for (int n = pick(1, 7); n > 0; --n) lengths.push_back(pick(1, 200));
    std::sort(lengths.begin(), lengths.end());
    const double a = pick(0, 5), b = pick(0, 50), c = pick(0, 5), d = pick(1, 400);
    const Cost cost = [=](int32_t rows, int32_t length) {
      return a * rows * length + b * rows + c * length + d;
    };
    const int32_t room = pick(1, 1000);
    const Fits fits = [=](int32_t rows, int32_t length) { return rows * length <= room; };
    double total = 0;
    size_t next = 0;
    for (int32_t rows : scls_partition(lengths, fits, cost)) {
      next += static_cast<size_t>(rows);
      const int32_t longest = lengths[next - 1];
      CHECK(rows == 1 || fits(rows, longest));
      total += cost(rows, longest);
    }
    CHECK(next == lengths.size());
    std::vector<std::vector<int32_t>> batches;
    CHECK(near(total, best_of_all(lengths, 0, batches, fits, cost)));
  }
  CHECK(scls_partition({}, {}, {}).empty());
}

std::unique_ptr<LatencyModel> flat_steps() {
  const double seconds[] = {0.010};  // whatever the rows
  return make_table_latency_model(seconds, 0.020, 0.001);
}

void serving_times_follow_what_is_measured() {
  ServingTimes times;
  CHECK(!times.seeded());
  times.seed(*flat_steps(), 16);
  times.fit();
  // Prefill 20 ms + 1 ms a token; a step 10 ms: the model's own numbers.
  CHECK(near(times.batch(4, 50, 8), 0.020 + 0.200 + 8 * 0.010));
  CHECK(near(times.prefill()[0], 0.001) && near(times.step()[3], 0.010));
  // Measured: prefill 40 ms + 2 ms a token, a step 5 ms + 1 us a token in KV.
  for (int k = 0; k < 20000; ++k) {
    const int32_t rows = 1 + k % 7, length = 10 + 13 * (k % 11);
    times.observe_prefill(rows, length, 0.040 + 0.002 * rows * length);
    times.observe_step(rows, length, 0.005 + 1e-6 * rows * length);
  }
  times.fit();
  // Tokens in KV of the steps: 100 .. 107 in each of two rows.
  const double steps = 8 * 0.005 + 2e-6 * (100 + 101 + 102 + 103 + 104 + 105 + 106 + 107);
  CHECK(std::abs(times.batch(2, 100, 8) / (0.040 + 0.400 + steps) - 1) < 0.01);
}

View machine_of(const LatencyModel& latency) {
  View machine;
  machine.total_blocks = 100;
  machine.max_rows = 2;
  machine.latency = &latency;
  return machine;
}

int queued(const SclsScheduler& scls) {
  JsonObject json;
  scls.describe(json);
  const std::string text = json.text(), key = "\"queued\":";
  return std::atoi(text.c_str() + text.find(key) + key.size());
}

void schedule_offloads_the_longest_to_the_least_loaded() {
  const auto latency = flat_steps();
  const View machine = machine_of(*latency);
  SclsScheduler scls({.slice = 10, .lambda = 0.5, .gamma = 0.1}, 2);
  scls.times().seed(*latency, 16);
  CHECK(std::isinf(scls.due()));
  // Serving one alone takes 120 ms + 1 ms a token; together, twice the longer's tokens.
  scls.add({1, 400});
  scls.add({2, 100});
  scls.add({3, 90});
  scls.add({4, 250});
  CHECK(scls.due() == 0);
  scls.schedule(5.0, machine);
  // {90, 100}: 320 ms instead of 220 + 210; 250 and 400 stay alone: 370 and 520.
  CHECK(near(scls.loads()[0], 0.520) && near(scls.loads()[1], 0.370 + 0.320));
  CHECK(std::isinf(scls.due()));
  scls.add({5, 50});
  CHECK(near(scls.due(), 5.0 + 0.260));  // half of the least load
  const SclsBatch first = scls.take(0), second = scls.take(1);
  CHECK(!scls.has_batch(0) && first.items.size() == 1 && first.items[0].key == 1);
  CHECK(second.items.size() == 1 && second.items[0].key == 4);
  CHECK(queued(scls) == 2);
  scls.remove(3);  // its batch stays as predicted
  CHECK(queued(scls) == 1 && near(scls.loads()[1], 0.690));
  scls.remove(2);  // nothing is left of it
  CHECK(queued(scls) == 0 && near(scls.loads()[1], 0.370) && !scls.has_batch(1));
  scls.returned(0, first.seconds);
  CHECK(near(scls.loads()[0], 0));
  scls.schedule(5.260, machine);  // task 5, to the instance without load
  CHECK(scls.has_batch(0) && near(scls.loads()[0], 0.170));
  scls.add({6, 50});
  scls.remove(6);
  CHECK(scls.pool().empty());
  scls.add({7, 50});
  CHECK(near(scls.due(), 5.260 + 0.1));  // gamma: half of 170 ms is less
}

void batches_keep_within_rows_and_memory() {
  const auto latency = flat_steps();
  View machine = machine_of(*latency);
  machine.max_rows = 8;
  machine.total_blocks = 12;
  // Rows of 16 tokens and a slice of 16 need two blocks: five rows in 0.9 * 12.
  SclsScheduler scls({.slice = 16, .lambda = 0.5, .gamma = 0.1}, 1);
  scls.times().seed(*latency, 16);
  for (int64_t key = 0; key < 6; ++key) scls.add({key, 16});
  scls.schedule(0, machine);
  CHECK(scls.take(0).items.size() == 5 && scls.take(0).items.size() == 1);
  machine.max_rows = 2;
  for (int64_t key = 0; key < 6; ++key) scls.add({key, 16});
  scls.schedule(1, machine);
  for (int k = 0; k < 3; ++k) CHECK(scls.take(0).items.size() == 2);
}

struct Keeper : Dispatcher {
  std::string name() const override { return "keeper"; }
  void arrive(const DispatchTask&) override {}
  void returned(int32_t, const DispatchTask&, bool) override {}
  std::vector<Dispatch> dispatch(double) override { return {}; }
};

void a_dispatcher_that_keeps_tasks_is_told() {
  SimMachine machine;
  machine.blocks = 8;
  std::vector<SimInstance> instances;
  instances.push_back(
      {make_sim_executor(flat_steps(), machine), make_policy("orca"), flat_steps()});
  const SimClass classes[1];
  const SimTask tasks[1];
  CHECK(test::throws(ErrorKind::state, "dispatch keeper", [&] {
    simulate_cluster(std::move(instances), std::make_unique<Keeper>(), classes, tasks, {});
  }));
}

}  // namespace

int main() {
  partition_is_optimal();
  serving_times_follow_what_is_measured();
  schedule_offloads_the_longest_to_the_least_loaded();
  batches_keep_within_rows_and_memory();
  a_dispatcher_that_keeps_tasks_is_told();
  return test::check_result();
}
