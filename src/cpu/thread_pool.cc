#include "cpu/thread_pool.h"

#include <pthread.h>
#include <sched.h>
#include <time.h>

#include <chrono>
#include <string>
#include <system_error>
#include <utility>

#include "slicellm/error.h"

namespace slicellm::cpu {
namespace {

constexpr auto kSpin = std::chrono::microseconds(50);
constexpr int kPausesPerClockRead = 16;
constexpr int64_t kChunks = 4;  // of a share
constexpr int kChunkBits = 8;   // of Member::taken
// Short, as most programs that take a core want it for a moment only; longer each time for who
// loses its core again soon after a rest.
constexpr auto kShortestRest = std::chrono::milliseconds(1);
constexpr auto kLongestRest = std::chrono::milliseconds(128);
constexpr auto kSoon = std::chrono::milliseconds(100);
constexpr auto kSample =
    std::chrono::milliseconds(1);  // between two samples of the caller's CPU time

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

void keep_on(const std::vector<int>& cpus, std::thread& thread) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (int cpu : cpus) CPU_SET(cpu, &set);
  const int error = pthread_setaffinity_np(thread.native_handle(), sizeof(set), &set);
  if (error != 0) throw std::system_error(error, std::generic_category());
}

std::chrono::nanoseconds thread_cpu_time() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec);
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  const NumaNode anywhere{.threads = threads, .cpus = {}, .memory = -1};
  start({&anywhere, 1});
}

ThreadPool::ThreadPool(std::span<const NumaNode> nodes) { start(nodes); }

void ThreadPool::start(std::span<const NumaNode> nodes) {
  for (const NumaNode& node : nodes) threads_ += node.threads;
  if (threads_ < 1 || threads_ > 1024) {
    throw Error(ErrorKind::invalid_argument, "threads", std::to_string(threads_), "1 to 1024");
  }
  members_ = std::make_unique<Member[]>(threads_);
  int first = 0;
  for (const NumaNode& node : nodes) {
    const int last = first + node.threads;
    for (int i = first; i < last; ++i) {
      members_[i].first = first;
      members_[i].last = last;
    }
    first = last;
  }
  try {
    int i = 0;
    for (const NumaNode& node : nodes) {
      for (int k = 0; k < node.threads; ++k, ++i) {
        if (i == 0) continue;  // the caller
        members_[i].thread = std::thread([this, i] { work(i); });
        if (!node.cpus.empty()) keep_on(node.cpus, members_[i].thread);
      }
    }
  } catch (const std::system_error&) {
    stop();
    throw Error(ErrorKind::resource, "threads", std::to_string(threads_),
                "a number of threads that the system can start and keep on their CPUs");
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    for (int i = 1; i < threads_; ++i) members_[i].resting.store(false);
    ticket_.fetch_add(1);
  }
  wake_members_.notify_all();
  for (int i = 1; i < threads_; ++i) {
    if (members_[i].thread.joinable()) members_[i].thread.join();
  }
}

// ---- the caller ---------------------------------------------------------------------------------

void ThreadPool::run(const Job& job) {
  const auto start = Clock::now();
  if (start - sampled_ > kSample) {
    sampled_ = start;
    cpu_time_ = thread_cpu_time();
  }
  if (resting_ > 0) end_rests(start);
  job_ = job;
  // Sequentially consistent with sleepers_: either the caller sees a member that goes to sleep and
  // wakes it, or that member sees the new job before it sleeps.
  const uint64_t ticket = ticket_.fetch_add(1) + 1;
  if (sleepers_.load() > 0) {
    { std::lock_guard lock(mutex_); }
    wake_members_.notify_all();
  }
  const int64_t chunks = do_chunks(0, ticket);
  const bool lost = lost_core(start);
  // Sequentially consistent with Member::inside: either a member sees that the job is over, or the
  // caller sees it inside.
  ticket_.fetch_add(1);
  wait_for_members(start, chunks);
  if (lost) {  // the other program may have that of a member instead
    int last = threads_ - 1;
    while (last > 0 && members_[last].resting.load()) --last;
    if (last > 0) rest(members_[last]);
  }
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

// `chunks`: what the caller itself did since `start`.
void ThreadPool::wait_for_members(Clock::time_point start, int64_t chunks) {
  const auto all_out = [&] {
    for (int i = 1; i < threads_; ++i) {
      if (members_[i].inside.load()) return false;
    }
    return true;
  };
  if (all_out()) return;
  const auto now = Clock::now();
  if (spin_until(all_out)) return;
  std::unique_lock lock(mutex_);
  caller_sleeps_.store(true);
  // A member has one chunk left at most. Who takes much longer for it than the caller is not
  // running.
  const auto patience = kSpin + 2 * (now - start) / std::max<int64_t>(chunks, 1);
  if (!wake_caller_.wait_until(lock, now + patience, all_out)) {
    for (int i = 1; i < threads_; ++i) {
      if (members_[i].inside.load()) rest(members_[i]);
    }
    wake_caller_.wait(lock, all_out);
  }
  caller_sleeps_.store(false);
}

void ThreadPool::rest(Member& member) {
  const auto now = Clock::now();
  const bool again = now < member.rest_end + kSoon;
  member.rest = again ? std::min<Clock::duration>(2 * member.rest, kLongestRest) : kShortestRest;
  member.rest_end = now + member.rest;
  member.resting.store(true);
  ++resting_;
}

// Whether another program had the caller's core for a good part of the job that began at `start`;
// what the system itself does now and then takes less.
bool ThreadPool::lost_core(Clock::time_point start) const {
  const auto now = Clock::now();
  if (now - start < kShortestRest) return false;
  const auto away = (now - sampled_) - (thread_cpu_time() - cpu_time_);
  return away > kSample + (now - start) / 4;  // it may have waited before the job
}

void ThreadPool::end_rests(Clock::time_point now) {
  const int before = resting_;
  for (int i = 1; i < threads_; ++i) {
    Member& member = members_[i];
    if (!member.resting.load() || now < member.rest_end) continue;
    member.resting.store(false);
    --resting_;
  }
  if (resting_ == before) return;
  { std::lock_guard lock(mutex_); }
  wake_members_.notify_all();
}

// ---- all threads --------------------------------------------------------------------------------

// Does chunks until none is left; returns their number.
int64_t ThreadPool::do_chunks(int thread, uint64_t ticket) {
  int64_t done = 0;
  try {
    const int at_home = members_[thread].first, next_door = members_[thread].last;
    const int home_size = next_door - at_home;
    for (int i = 0; i < threads_; ++i) {
      const int owner = i < home_size ? at_home + (thread - at_home + i) % home_size
                                      : (next_door + i - home_size) % threads_;
      const int64_t first = job_.pieces * owner / threads_;
      const int64_t pieces = job_.pieces * (owner + 1) / threads_ - first;
      const int64_t chunks = std::min(pieces, kChunks);
      int64_t chunk;
      while ((chunk = take_chunk(members_[owner], ticket, chunks)) >= 0) {
        const int64_t begin = (first + pieces * chunk / chunks) * job_.grain;
        const int64_t end = (first + pieces * (chunk + 1) / chunks) * job_.grain;
        job_.call(job_.callable, begin, std::min(end, job_.count), thread);
        ++done;
      }
    }
  } catch (...) {
    std::lock_guard lock(mutex_);
    if (!failure_) failure_ = std::current_exception();
  }
  return done;
}

// -1 when all are taken.
int64_t ThreadPool::take_chunk(Member& owner, uint64_t ticket, int64_t chunks) {
  uint64_t taken = owner.taken.load(std::memory_order_relaxed);
  while (true) {
    const uint64_t next = taken >> kChunkBits == ticket ? taken + 1 : (ticket << kChunkBits) + 1;
    const auto chunk = static_cast<int64_t>(next & ((1 << kChunkBits) - 1)) - 1;
    if (chunk >= chunks) return -1;
    if (owner.taken.compare_exchange_weak(taken, next, std::memory_order_relaxed)) return chunk;
  }
}

// ---- the others ---------------------------------------------------------------------------------

void ThreadPool::work(int thread) {
  Member& self = members_[thread];
  uint64_t ticket = 0;
  while (true) {
    wait_for_job(self, ticket);
    self.inside.store(true);
    ticket = ticket_.load();
    if (ticket % 2 == 1) {
      if (stopping_) return;
      do_chunks(thread, ticket);
    }
    self.inside.store(false);
    if (caller_sleeps_.load()) {
      { std::lock_guard lock(mutex_); }
      wake_caller_.notify_one();
    }
  }
}

// Returns when a job other than `seen` can be entered.
void ThreadPool::wait_for_job(Member& self, uint64_t seen) {
  const auto open = [&] {
    const uint64_t ticket = ticket_.load();
    return ticket % 2 == 1 && ticket != seen;
  };
  const auto resting = [&] { return self.resting.load(); };
  const auto open_or_resting = [&] { return open() || resting(); };
  if (spin_until(open_or_resting) && !resting()) return;
  std::unique_lock lock(mutex_);
  while (resting() || !open()) {
    if (resting()) {
      wake_members_.wait(lock, [&] { return !resting(); });
    } else {
      sleepers_.fetch_add(1);
      wake_members_.wait(lock, open_or_resting);
      sleepers_.fetch_sub(1);
    }
  }
}

}  // namespace slicellm::cpu
