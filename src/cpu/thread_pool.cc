#include "cpu/thread_pool.h"

#include <chrono>
#include <string>
#include <system_error>
#include <utility>

#include "slicellm/error.h"

namespace slicellm::cpu {
namespace {

constexpr auto kSpin = std::chrono::microseconds(50);
constexpr int kPausesPerClockRead = 16;

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins until done() or the spin time is over; true when done.
template <class Done>
bool spin_until(Done done) {
  if (done()) return true;
  const auto give_up = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < kPausesPerClockRead; ++i) {
      pause();
      if (done()) return true;
    }
  } while (std::chrono::steady_clock::now() < give_up);
  return false;
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  if (threads < 1 || threads > 1024) {
    throw Error(ErrorKind::invalid_argument, "threads", std::to_string(threads), "1 to 1024");
  }
  workers_.reserve(threads - 1);
  try {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
  } catch (const std::system_error&) {
    stop();
    throw Error(ErrorKind::resource, "threads", std::to_string(threads),
                "a number of threads that the system can start");
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    generation_.fetch_add(1);
  }
  wake_workers_.notify_all();
  for (std::thread& worker : workers_) worker.join();
  workers_.clear();
}

void ThreadPool::run_job(Job job, void* callable) {
  if (workers_.empty()) {
    job(callable, 0);
    return;
  }
  job_ = job;
  callable_ = callable;
  unfinished_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  // Sequentially consistent with sleepers_: either the caller sees a worker that goes to sleep and
  // wakes it, or that worker sees the new generation before it sleeps.
  generation_.fetch_add(1);
  if (sleepers_.load() > 0) {
    { std::lock_guard lock(mutex_); }
    wake_workers_.notify_all();
  }
  run_share(0);
  wait_for_workers();
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

void ThreadPool::run_share(int thread) {
  try {
    job_(callable_, thread);
  } catch (...) {
    std::lock_guard lock(mutex_);
    if (!failure_) failure_ = std::current_exception();
  }
}

void ThreadPool::work(int thread) {
  uint32_t seen = 0;
  while (true) {
    seen = wait_for_job(seen);
    if (stopping_) return;
    run_share(thread);
    if (unfinished_.fetch_sub(1) == 1 && caller_sleeps_.load()) {
      { std::lock_guard lock(mutex_); }
      wake_caller_.notify_one();
    }
  }
}

uint32_t ThreadPool::wait_for_job(uint32_t seen) {
  const auto started = [&] { return generation_.load() != seen; };
  if (!spin_until(started)) {
    std::unique_lock lock(mutex_);
    sleepers_.fetch_add(1);
    wake_workers_.wait(lock, started);
    sleepers_.fetch_sub(1);
  }
  // One job at a time, and the caller waits for all: a worker never misses a generation.
  return seen + 1;
}

void ThreadPool::wait_for_workers() {
  const auto done = [&] { return unfinished_.load() == 0; };
  if (spin_until(done)) return;
  std::unique_lock lock(mutex_);
  caller_sleeps_.store(true);
  wake_caller_.wait(lock, done);
  caller_sleeps_.store(false);
}

}  // namespace slicellm::cpu
