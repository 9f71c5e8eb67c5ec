#include "benchmark/roofline/limits.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include "benchmark/roofline/limit_loops.h"
#include "cpu/memory.h"

namespace slicellm::roofline {
namespace {

constexpr size_t kReadBytes = size_t{512} << 20;  // many times the caches
constexpr int64_t kRounds = 1 << 19;
constexpr int kRepeats = 5;

const LimitLoops& loops_of(cpu::Isa isa) {
#if defined(__x86_64__)
  if (isa == cpu::Isa::avx512) return avx512_limit_loops;
  if (isa == cpu::Isa::avx2) return avx2_limit_loops;
#endif
  (void)isa;
  return portable_limit_loops;
}

template <class Function>
double median_seconds(Function function) {
  std::vector<double> seconds;
  for (int i = 0; i < kRepeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    function();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    seconds.push_back(took.count());
  }
  std::nth_element(seconds.begin(), seconds.begin() + kRepeats / 2, seconds.end());
  return seconds[kRepeats / 2];
}

double read_rate(cpu::ThreadPool& pool, const LimitLoops& loops) {
  const auto memory = cpu::allocate_bytes(kReadBytes, "roofline");
  std::memset(memory.get(), 1, kReadBytes);
  double best = 0;
  for (ReadLoop loop : loops.read) {
    const double seconds = median_seconds([&] {
      pool.parallel_for(kReadBytes, 4096, [&](int64_t begin, int64_t end, int) {
        volatile uint64_t sink = loop(memory.get() + begin, static_cast<size_t>(end - begin));
        (void)sink;
      });
    });
    best = std::max(best, kReadBytes / seconds);
  }
  return best;
}

double operation_rate(cpu::ThreadPool& pool, RateLoop loop, int64_t operations) {
  const double seconds = median_seconds([&] {
    pool.parallel_for(pool.threads(), 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        volatile float sink = loop(kRounds);
        (void)sink;
      }
    });
  });
  return static_cast<double>(operations) * kRounds * pool.threads() / seconds;
}

}  // namespace

MachineLimits measure_limits(cpu::ThreadPool& pool, cpu::Isa isa) {
  const LimitLoops& loops = loops_of(isa);
  return {read_rate(pool, loops), operation_rate(pool, loops.int8_dots, loops.int8_operations),
          operation_rate(pool, loops.float_fma, loops.float_operations)};
}

}  // namespace slicellm::roofline
