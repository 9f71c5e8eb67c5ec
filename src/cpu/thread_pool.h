#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <type_traits>

#include "cpu/numa.h"

namespace slicellm::cpu {

// A fixed set of threads that work on one job at a time, beside the caller, who is thread 0. Idle
// threads spin for some tens of microseconds, so that the ops of one step follow each other without
// system calls, and then sleep. Jobs are started from one thread at a time and never from inside a
// job. An exception of any thread reaches the caller after all threads have left the job.
//
// Made for cores that other programs use as well. Every thread has its own share of a job, cut into
// chunks, and takes chunks of others' shares when its own is done; so nobody waits for a thread
// that has not begun. A thread that loses its core amid a chunk holds up the job all the same: it
// then rests for some milliseconds, and the others do its share.
class ThreadPool {
 public:
  // Throws Error(invalid_argument) outside 1..1024, Error(resource) when a thread cannot start.
  explicit ThreadPool(int threads);
  // The threads of each node in turn, kept on its CPUs; only the caller stays where it is. They
  // take chunks of other nodes' shares when all of their own node's are taken. Throws
  // Error(resource) also when a thread cannot be kept on its CPUs.
  explicit ThreadPool(std::span<const NumaNode> nodes);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  // Jobs so far that took more than one thread: each is a barrier for all threads.
  uint64_t barriers() const { return ticket_.load() / 2; }

  // Calls function(begin, end, thread) for chunks that cover [0, count), each once, with borders at
  // multiples of `grain`. A thread, of 0..threads()-1, may get any number of them, one at a time.
  template <class Function>
  void parallel_for(int64_t count, int64_t grain, Function&& function) {
    using Callable = std::remove_reference_t<Function>;
    const int64_t pieces = (count + grain - 1) / grain;
    if (pieces <= 0) return;
    if (pieces == 1 || threads_ == 1) {
      function(int64_t{0}, count, 0);
      return;
    }
    run({[](void* callable, int64_t begin, int64_t end, int thread) {
           (*static_cast<Callable*>(callable))(begin, end, thread);
         },
         const_cast<void*>(static_cast<const void*>(std::addressof(function))), count, grain,
         pieces});
  }

 private:
  using Clock = std::chrono::steady_clock;
  struct Job {
    void (*call)(void* callable, int64_t begin, int64_t end, int thread) = nullptr;
    void* callable = nullptr;
    int64_t count = 0, grain = 1, pieces = 0;
  };
  struct alignas(64) Member {
    // How many chunks of its share are taken (the low bits), in the job with this ticket (the
    // rest).
    std::atomic<uint64_t> taken{0};
    std::atomic<bool> inside{false};   // in a job, or about to find out that it is over
    std::atomic<bool> resting{false};  // written by the caller
    Clock::time_point rest_end;        // this and the next are the caller's
    Clock::duration rest{0};           // the last one
    std::thread thread;                // the caller's member has none
    int first = 0, last = 0;           // threads of its node
  };

  void run(const Job& job);
  int64_t do_chunks(int thread, uint64_t ticket);
  int64_t take_chunk(Member& owner, uint64_t ticket, int64_t chunks);
  void work(int thread);
  void wait_for_job(Member& self, uint64_t seen);
  void wait_for_members(Clock::time_point start, int64_t chunks);
  void rest(Member& member);
  bool lost_core(Clock::time_point start) const;
  void end_rests(Clock::time_point now);
  void stop();

  void start(std::span<const NumaNode> nodes);

  int threads_ = 0;
  std::unique_ptr<Member[]> members_;  // [threads]

  // The caller's.
  int resting_ = 0;                       // members
  Clock::time_point sampled_;             // when its own CPU time was read
  std::chrono::nanoseconds cpu_time_{0};  // what it was then

  // Written by the caller before `ticket_` becomes odd, read by members who are inside and saw
  // that.
  Job job_;
  bool stopping_ = false;

  alignas(64) std::atomic<uint64_t> ticket_{0};  // odd while a job may be entered
  alignas(64) std::atomic<int> sleepers_{0};     // (about to be) asleep until the next job
  std::atomic<bool> caller_sleeps_{false};

  std::mutex mutex_;  // guards the sleeping side only, and `failure_`
  std::condition_variable wake_members_, wake_caller_;
  std::exception_ptr failure_;
};

}  // namespace slicellm::cpu
