// The thread pool: every chunk is done exactly once, exceptions arrive, idle threads sleep and
// wake.
#include "cpu/thread_pool.h"

#include <ctime>

#include <atomic>
#include <chrono>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#include "check.h"

namespace slicellm {
namespace {

using cpu::ThreadPool;

void test_chunks() {
  std::mt19937 random(1);
  for (int threads : {1, 2, 3, 5}) {
    ThreadPool pool(threads);
    CHECK(pool.threads() == threads);
    for (int round = 0; round < 300; ++round) {
      const int64_t count = random() % 200, grain = 1 + random() % 20;
      std::vector<int> hits(count, 0);              // each element is written by one thread only
      std::vector<std::atomic<int>> busy(threads);  // calls that a thread is in
      pool.parallel_for(count, grain, [&](int64_t begin, int64_t end, int thread) {
        CHECK(++busy[thread] == 1);
        CHECK(begin < end && begin % grain == 0 && (end % grain == 0 || end == count));
        for (int64_t i = begin; i < end; ++i) ++hits[i];
        --busy[thread];
      });
      CHECK(std::accumulate(hits.begin(), hits.end(), int64_t{0}) == count);
      for (int hit : hits) CHECK(hit == 1);
    }
  }
}

void test_barriers() {
  ThreadPool pool(2), alone(1);
  const auto nothing = [](int64_t, int64_t, int) {};
  CHECK(pool.barriers() == 0);
  pool.parallel_for(10, 1, nothing);
  pool.parallel_for(10, 5, nothing);
  CHECK(pool.barriers() == 2);
  pool.parallel_for(10, 10, nothing);  // one piece: the caller's alone
  pool.parallel_for(0, 1, nothing);
  CHECK(pool.barriers() == 2);
  alone.parallel_for(10, 1, nothing);
  CHECK(alone.barriers() == 0);
}

// Jobs that follow each other at once, after a spin, after a sleep and after a rest: the paths that
// could lose a wake-up, a chunk, or do one twice.
void test_wake_ups() {
  ThreadPool pool(3);
  std::mt19937 random(2);
  constexpr int kJobs = 3000, kPieces = 24;
  std::vector<int64_t> sums(kPieces, 0);
  for (int job = 0; job < kJobs; ++job) {
    const int late = static_cast<int>(random() % 3);
    pool.parallel_for(kPieces, 1, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t i = begin; i < end; ++i) sums[i] += job;
      if (thread == late && job % 97 == 0) {  // as if it lost its core
        std::this_thread::sleep_for(std::chrono::microseconds(1000));
      }
    });
    if (job % 50 == 0) {
      std::this_thread::sleep_for(std::chrono::microseconds(random() % 150));
    }
  }
  for (int64_t sum : sums) CHECK(sum == int64_t{kJobs} * (kJobs - 1) / 2);
}

// A thread that loses its core amid a chunk rests, and comes back.
void test_rest() {
  ThreadPool pool(2);
  std::atomic<bool> seen{false};  // the other thread, in the last job
  const auto run = [&](int ms) {
    seen = false;
    pool.parallel_for(2, 1, [&](int64_t, int64_t, int thread) {
      if (thread == 1) {
        seen = true;
        std::this_thread::sleep_for(std::chrono::milliseconds(ms));
      } else {  // long enough for the other to come
        for (int i = 0; i < 20 && !seen; ++i) {
          std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
      }
    });
  };
  for (int round = 0; round < 3; ++round) {
    do run(20);
    while (!seen);
    do run(0);
    while (!seen);
  }
}

void test_exceptions() {
  ThreadPool pool(4);
  for (int thrower = 0; thrower < 40; ++thrower) {
    bool caught = false;
    try {
      pool.parallel_for(40, 1, [&](int64_t begin, int64_t end, int) {
        if (begin <= thrower && thrower < end) throw std::runtime_error("chunk failed");
      });
    } catch (const std::runtime_error& e) {
      caught = std::string(e.what()) == "chunk failed";
    }
    CHECK(caught);
  }
  std::atomic<int> after{0};
  pool.parallel_for(
      9, 1, [&](int64_t begin, int64_t end, int) { after += static_cast<int>(end - begin); });
  CHECK(after == 9);
  bool all_threw = false;
  try {
    pool.parallel_for(9, 1, [](int64_t, int64_t, int) { throw std::runtime_error("all"); });
  } catch (const std::runtime_error&) {
    all_threw = true;
  }
  CHECK(all_threw);
}

void test_idle_costs_nothing() {
  ThreadPool pool(2);
  pool.parallel_for(2, 1, [](int64_t, int64_t, int) {});
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
  slicellm::test_chunks();
  slicellm::test_barriers();
  slicellm::test_wake_ups();
  slicellm::test_rest();
  slicellm::test_exceptions();
  slicellm::test_idle_costs_nothing();
  slicellm::test_limits();
  return slicellm::test::check_result();
}
