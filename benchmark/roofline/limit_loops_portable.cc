#include <cstring>

#include "benchmark/roofline/limit_loops_impl.h"

namespace slicellm::roofline {
namespace {

// 128-bit vectors of the compiler: what plain C++ gets without naming instructions. Products of
// bytes are made as products of 32-bit numbers.
struct Portable {
  static constexpr size_t kBytes = 16;
  static constexpr int kDotProducts = 4;
  using Int = int32_t __attribute__((vector_size(16)));
  using Float = float __attribute__((vector_size(16)));

  static Int load(const std::byte* p) {
    Int v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  }
  static Int mix(Int a, Int b) { return a ^ b; }
  static uint64_t first(Int v) { return static_cast<uint32_t>(v[0]); }
  static Int bytes(char v) { return Int{v, v, v, v}; }
  static Int dot(Int sum, Int a, Int b) { return sum + a * b; }
  static Float broadcast(float v) { return Float{v, v, v, v}; }
  static Float fma(Float a, Float b, Float c) { return a * b + c; }
  static float first_float(Float v) { return v[0]; }
};

}  // namespace

const LimitLoops portable_limit_loops = limit_loops<Portable>();

}  // namespace slicellm::roofline
