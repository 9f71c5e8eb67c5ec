#pragma once

#include "cpu/isa.h"
#include "cpu/thread_pool.h"

namespace slicellm::roofline {

// What the machine does at most, per second, with all threads of a pool at once.
struct MachineLimits {
  double read_bytes;        // from memory: the best of several loops, its median
  double int8_operations;   // exact int8 multiplications and additions
  double float_operations;  // float32, fused
};

// Takes about a second. ARM has the portable loops only.
MachineLimits measure_limits(cpu::ThreadPool& pool, cpu::Isa isa);

}  // namespace slicellm::roofline
