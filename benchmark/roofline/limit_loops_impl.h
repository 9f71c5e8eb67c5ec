#pragma once

#include "benchmark/roofline/limit_loops.h"

// The loops, written once over the operations `S` of an instruction set. Included by one source
// file per instruction set; in an unnamed namespace for the same reason as the kernels are.
namespace slicellm::roofline {
namespace {

constexpr size_t kPage = 4096;
constexpr int kChains = 12;  // independent sums: enough to hide the latency of each

template <class S, int kStreams, int kAhead>
uint64_t read_loop(const std::byte* from, size_t bytes) {
  constexpr size_t kWide = 4 * S::kBytes;
  const size_t stream = bytes / kPage / kStreams * kPage;
  typename S::Int sums[4] = {};
  const auto read = [&](const std::byte* p) __attribute__((always_inline)) {
    if constexpr (kAhead > 0) {
      for (size_t line = 0; line < kWide; line += 64) __builtin_prefetch(p + kAhead + line);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) sums[i] = S::mix(sums[i], S::load(p + i * S::kBytes));
  };
  for (size_t at = 0; at < stream; at += kWide) {
#pragma GCC unroll 4
    for (int s = 0; s < kStreams; ++s) read(from + s * stream + at);
  }
  for (size_t at = kStreams * stream; at < bytes; at += kWide) read(from + at);
  return S::first(S::mix(S::mix(sums[0], sums[1]), S::mix(sums[2], sums[3])));
}

// The compiler may not tell what is in v, so that it neither folds nor hoists what is done with it.
template <class T>
inline __attribute__((always_inline)) void forget(T& v) {
#if defined(__x86_64__)
  asm volatile("" : "+v"(v));
#else
  asm volatile("" : "+w"(v));
#endif
}

template <class S>
float int8_loop(int64_t rounds) {
  typename S::Int sums[kChains] = {}, a = S::bytes(3), b = S::bytes(1);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) {
      forget(a);
      sums[c] = S::dot(sums[c], a, b);
      forget(sums[c]);
    }
  }
#pragma GCC unroll 12
  for (int i = 1; i < kChains; ++i) sums[0] = S::mix(sums[0], sums[i]);
  return static_cast<float>(S::first(sums[0]));
}

template <class S>
float float_loop(int64_t rounds) {
  typename S::Float sums[kChains] = {}, a = S::broadcast(0.5f), b = S::broadcast(0.25f);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) {
      forget(a);
      sums[c] = S::fma(a, b, sums[c]);
      forget(sums[c]);
    }
  }
#pragma GCC unroll 12
  for (int i = 1; i < kChains; ++i) sums[0] = S::fma(sums[i], a, sums[0]);
  return S::first_float(sums[0]);
}

template <class S>
constexpr LimitLoops limit_loops() {
  return {{read_loop<S, 1, 0>, read_loop<S, 2, 0>, read_loop<S, 4, 0>, read_loop<S, 1, 2048>},
          int8_loop<S>,
          float_loop<S>,
          int64_t{2} * S::kDotProducts * kChains,
          int64_t{2} * static_cast<int64_t>(S::kBytes / sizeof(float)) * kChains};
}

}  // namespace
}  // namespace slicellm::roofline
