// The thread pool: every share runs exactly once, exceptions arrive, idle threads sleep and wake.
#include "cpu/thread_pool.h"

#include <ctime>

#include <chrono>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#include "check.h"

namespace slicellm {
namespace {

using cpu::ThreadPool;

void test_shares() {
  std::mt19937 random(1);
  for (int threads : {1, 2, 3, 5}) {
    ThreadPool pool(threads);
    CHECK(pool.threads() == threads);
    for (int round = 0; round < 300; ++round) {
      const int64_t count = random() % 200, grain = 1 + random() % 20;
      std::vector<int> hits(count, 0);  // each element is written by one thread only
      std::vector<int> calls(threads, 0);
      pool.parallel_for(count, grain, [&](int64_t begin, int64_t end, int thread) {
        CHECK(begin < end && begin % grain == 0 && (end % grain == 0 || end == count));
        ++calls[thread];
        for (int64_t i = begin; i < end; ++i) ++hits[i];
      });
      CHECK(std::accumulate(hits.begin(), hits.end(), int64_t{0}) == count);
      for (int hit : hits) CHECK(hit == 1);
      for (int call : calls) CHECK(call <= 1);
    }
  }
}

// Jobs that follow each other at once, after a spin and after a sleep: the paths that could lose
// a wake-up.
void test_wake_ups() {
  ThreadPool pool(3);
  std::mt19937 random(2);
  std::vector<int64_t> sums(3, 0);
  constexpr int kJobs = 3000;
  for (int job = 0; job < kJobs; ++job) {
    pool.run([&](int thread) {
      sums[thread] += job;
      if (thread == job % 3 && job % 97 == 0) {
        std::this_thread::sleep_for(std::chrono::microseconds(200));
      }
    });
    if (job % 50 == 0) {
      std::this_thread::sleep_for(std::chrono::microseconds(random() % 150));
    }
  }
  for (int64_t sum : sums) CHECK(sum == int64_t{kJobs} * (kJobs - 1) / 2);
}

void test_exceptions() {
  ThreadPool pool(4);
  for (int thrower = 0; thrower < 4; ++thrower) {
    std::vector<int> ran(4, 0);
    bool caught = false;
    try {
      pool.run([&](int thread) {
        ran[thread] = 1;
        if (thread == thrower) throw std::runtime_error("share failed");
      });
    } catch (const std::runtime_error& e) {
      caught = std::string(e.what()) == "share failed";
    }
    CHECK(caught);
    for (int r : ran) CHECK(r == 1);
  }
  int after = 0;
  pool.parallel_for(1, 1, [&](int64_t, int64_t, int) { ++after; });
  CHECK(after == 1);
  bool all_threw = false;
  try {
    pool.run([](int) { throw std::runtime_error("all"); });
  } catch (const std::runtime_error&) {
    all_threw = true;
  }
  CHECK(all_threw);
}

void test_idle_costs_nothing() {
  ThreadPool pool(2);
  pool.run([](int) {});
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  timespec before, after;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
  const double used = static_cast<double>(after.tv_sec - before.tv_sec) +
                      static_cast<double>(after.tv_nsec - before.tv_nsec) * 1e-9;
  CHECK_MESSAGE(used < 0.02, "idle pool used " + std::to_string(used) + " s of 0.1 s");
}

void test_limits() {
  for (int threads : {0, -1, 1025}) {
    CHECK(test::throws(ErrorKind::invalid_argument, "threads", [&] { ThreadPool pool(threads); }));
  }
  for (int i = 0; i < 50; ++i) ThreadPool pool(1 + i % 4);  // destroyed while threads start
}

}  // namespace
}  // namespace slicellm

int main() {
  slicellm::test_shares();
  slicellm::test_wake_ups();
  slicellm::test_exceptions();
  slicellm::test_idle_costs_nothing();
  slicellm::test_limits();
  return slicellm::test::check_result();
}
