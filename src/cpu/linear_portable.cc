#include "cpu/linear_tile.h"

namespace slicellm::cpu {
namespace {

// 128-bit vectors by the compiler's own extension: SSE2 on x86-64, NEON on ARM.
struct Portable {
  static constexpr int kRows = 4;
  typedef float Float __attribute__((vector_size(16)));
  typedef int32_t Int __attribute__((vector_size(16)));

  static Float zero() { return Float{}; }
  static Float broadcast(float v) { return Float{v, v, v, v}; }
  static Float add(Float a, Float b) { return a + b; }
  static Float mul(Float a, Float b) { return a * b; }
  static Float fma(Float a, Float b, Float c) { return a * b + c; }
  static Float to_float(Int v) { return __builtin_convertvector(v, Float); }
  static void store(float* p, Float v) { __builtin_memcpy(p, &v, sizeof(v)); }
  static Float load_float(const void* p) {
    Float v;
    __builtin_memcpy(&v, p, sizeof(v));
    return v;
  }
  static Float as_float(Int v) { return reinterpret_cast<Float>(v); }
  static Int load_halves(const void* p) {
    uint16_t h[4];
    __builtin_memcpy(h, p, sizeof(h));
    return Int{h[0], h[1], h[2], h[3]};
  }
  static Float load_half(const void* p) {
    const Int h = load_halves(p);
    // Exponent and mantissa at their float32 places, then the exponent's bias put right by a
    // multiplication, which also normalises subnormals. Infinities and NaNs keep the top exponent.
    const Int magnitude = (h & 0x7fff) << 13;
    const Int special = (h & 0x7c00) == 0x7c00;
    const Float scaled = as_float(magnitude) * 0x1p112f;
    const Int bits = (reinterpret_cast<Int>(scaled) & ~special) |
                     ((magnitude | 0x7f800000) & special) | ((h & 0x8000) << 16);
    return as_float(bits);
  }
  static Float load_bfloat16(const void* p) { return as_float(load_halves(p) << 16); }
  static Int load_bytes(const uint8_t* p) { return Int{p[0], p[1], p[2], p[3]}; }
  static Int load_codes(const uint8_t* p) {
    Int v;
    __builtin_memcpy(&v, p, sizeof(v));
    return v;
  }
  static Int add_pairs(Int sum, Int zero, int32_t factor) { return sum + zero * factor; }
  static Int sub(Int a, Int b) { return a - b; }
  template <int kShift, int kMask>
  static Int field(Int v) {
    return (v >> kShift) & kMask;
  }
};

struct Dot {
  static constexpr ActivationKind kActivation = ActivationKind::int8;
  using Word = Portable::Int;
  static constexpr int kWordBytes = 4;
  Portable::Int sum{};

  void add(Portable::Int w, const int8_t* a) {
    sum += Portable::field<0, 0xff>(w) * a[0];
    sum += Portable::field<8, 0xff>(w) * a[1];
    sum += Portable::field<16, 0xff>(w) * a[2];
    sum += Portable::field<24, 0xff>(w) * a[3];
  }
  Portable::Int total() const { return sum; }
  void flush() {}
};

struct DotInt4 : Dot {
  static constexpr int kCodeBytes = 16;
  static void load(const uint8_t* codes, Portable::Int w[2]) {
    const Portable::Int both = Portable::load_codes(codes);
    w[0] = both & 0x0f0f0f0f;
    w[1] = (both >> 4) & 0x0f0f0f0f;
  }
};

struct DotInt8 : Dot {
  static constexpr int kCodeBytes = 32;
  static void load(const uint8_t* codes, Portable::Int w[2]) {
    w[0] = Portable::load_codes(codes);
    w[1] = Portable::load_codes(codes + 16);
  }
};

template <int kTokens>
using DotsInt4 = TokenDots<DotInt4, kTokens>;
template <int kTokens>
using DotsInt8 = TokenDots<DotInt8, kTokens>;

}  // namespace

const LinearKernels portable_linear_kernels = {
    {
        float_kernel<Portable, WeightKind::float32, 2>(TokenCounts<4>{}),
        float_kernel<Portable, WeightKind::float16, 2>(TokenCounts<4>{}),
        float_kernel<Portable, WeightKind::bfloat16, 2>(TokenCounts<4>{}),
        decoded_kernel<Portable, false>(TokenCounts<4>{}),
        decoded_kernel<Portable, true>(TokenCounts<4>{}),
    },
    {
        integer_kernel<Portable, DotsInt8>(TokenCounts<4>{}),
        integer_kernel<Portable, DotsInt4>(TokenCounts<4>{}),
    },
};

}  // namespace slicellm::cpu
