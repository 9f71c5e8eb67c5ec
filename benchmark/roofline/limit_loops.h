#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

// Loops that do nothing but read, or nothing but multiply and add, written for each instruction set
// with the instructions that its kernels use. What they reach is what a kernel could reach at most.
namespace slicellm::roofline {

// Reads all of [from, from + bytes), bytes a multiple of 4096; the result depends on every byte.
using ReadLoop = uint64_t (*)(const std::byte* from, size_t bytes);
// Does its operations `rounds` times; the result depends on all of them.
using RateLoop = float (*)(int64_t rounds);

struct LimitLoops {
  std::array<ReadLoop, 4> read;  // 1, 2 and 4 streams side by side; 1 with explicit prefetch
  RateLoop int8_dots;            // int8 products with exact 32-bit sums
  RateLoop float_fma;
  int64_t int8_operations;  // multiplications and additions of a round
  int64_t float_operations;
};

extern const LimitLoops portable_limit_loops;
#if defined(__x86_64__)
extern const LimitLoops avx2_limit_loops;
extern const LimitLoops avx512_limit_loops;
#endif

}  // namespace slicellm::roofline
