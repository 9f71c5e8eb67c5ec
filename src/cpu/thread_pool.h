#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace slicellm::cpu {

// A fixed set of threads that run one job at a time; the caller is thread 0 of every job. Idle
// threads spin for some tens of microseconds, so that the ops of one step follow each other without
// system calls, and then sleep. Jobs are started from one thread at a time and never from inside a
// job. An exception of any thread reaches the caller after all threads have finished the job.
class ThreadPool {
 public:
  // Throws Error(invalid_argument) outside 1..1024, Error(resource) when a thread cannot start.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls function(thread) once on each thread 0..threads()-1.
  template <class Function>
  void run(Function&& function) {
    using Callable = std::remove_reference_t<Function>;
    run_job([](void* callable, int thread) { (*static_cast<Callable*>(callable))(thread); },
            const_cast<void*>(static_cast<const void*>(std::addressof(function))));
  }

  // Calls function(begin, end, thread) on each thread's share of [0, count): contiguous parts whose
  // borders are multiples of `grain`. Threads whose share is empty are not called.
  template <class Function>
  void parallel_for(int64_t count, int64_t grain, Function&& function) {
    const int64_t pieces = (count + grain - 1) / grain;
    if (pieces <= 0) return;
    if (pieces == 1 || workers_.empty()) {
      function(int64_t{0}, count, 0);
      return;
    }
    run([&](int thread) {
      const int64_t begin = pieces * thread / threads() * grain;
      const int64_t end = std::min(count, pieces * (thread + 1) / threads() * grain);
      if (begin < end) function(begin, end, thread);
    });
  }

 private:
  using Job = void (*)(void* callable, int thread);

  void run_job(Job job, void* callable);
  void work(int thread);
  void run_share(int thread);
  uint32_t wait_for_job(uint32_t seen);
  void wait_for_workers();
  void stop();

  // Written by the caller before `generation_` is raised, read by workers after they saw it.
  Job job_ = nullptr;
  void* callable_ = nullptr;
  bool stopping_ = false;

  alignas(64) std::atomic<uint32_t> generation_{0};  // raised once per job
  alignas(64) std::atomic<int> unfinished_{0};       // workers still in the job
  alignas(64) std::atomic<int> sleepers_{0};         // workers (about to be) asleep
  std::atomic<bool> caller_sleeps_{false};

  std::mutex mutex_;  // guards the sleeping side only, and `failure_`
  std::condition_variable wake_workers_, wake_caller_;
  std::exception_ptr failure_;
  std::vector<std::thread> workers_;
};

}  // namespace slicellm::cpu
