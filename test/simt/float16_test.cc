// 16-bit arithmetic of the emulated headers against exact arithmetic in long double (64 bits of
// mantissa or more), rounded to nearest even by counting units.
#include <cmath>
#include <random>

#include "check.h"
#include "cuda/kernel.h"

namespace {

using slicellm::test::check_result;

// `digits` of mantissa, least exponent of a unit, largest finite value.
long double round_exact(long double x, int digits, int unit_exponent, long double largest) {
  if (x == 0 || std::isinf(x)) return x;
  int exponent = 0;
  std::frexp(x, &exponent);
  const int unit = std::max(exponent - digits, unit_exponent);
  const long double rounded = std::ldexp(std::nearbyint(std::ldexp(x, -unit)), unit);
  return std::fabs(rounded) > largest ? std::copysign(HUGE_VALL, rounded) : rounded;
}

template <class T>
long double round_to(long double x);
template <>
long double round_to<__half>(long double x) {
  return round_exact(x, 11, -24, 65504.0L);
}
template <>
long double round_to<__nv_bfloat16>(long double x) {
  return round_exact(x, 8, -133, 0x1.fep127L);
}

template <class T>
bool same(T got, long double expected) {
  const auto value = static_cast<float>(got);
  return value == static_cast<float>(round_to<T>(expected)) &&
         std::signbit(value) == std::signbit(expected);
}

// Exponents close to each other, so that sums cancel, tie and underflow often.
template <class T>
T draw(std::mt19937& random, int spread) {
  uint32_t bits = random();
  const int mantissa = sizeof(T) == 2 && std::is_same_v<T, __half> ? 10 : 7;
  const int exponents = mantissa == 10 ? 31 : 255;
  const int exponent = static_cast<int>(random() % spread) % exponents;
  bits = (bits & 0x8000u) | static_cast<uint32_t>(exponent) << mantissa |
         (bits & ((1u << mantissa) - 1));
  return T::from_bits(static_cast<uint16_t>(bits));
}

template <class T>
void test_arithmetic(int spread) {
  std::mt19937 random(1);
  for (int i = 0; i < 200000; ++i) {
    const T a = draw<T>(random, spread), b = draw<T>(random, spread), c = draw<T>(random, spread);
    const long double x = float(a), y = float(b), z = float(c);
    const long double sum = x + y, product = x * y;
    // Exact if no bit falls off 64: these exponents span less, and zero keeps the sign rules.
    if (sum != 0) CHECK(same(__hadd(a, b), sum));
    if (x - y != 0) CHECK(same(__hsub(a, b), x - y));
    CHECK(same(__hmul(a, b), product));
    const long double fused = product + z;
    if (fused != 0 && fused - product == z && fused - z == product) {
      CHECK(same(__hfma(a, b, c), fused));
    }
  }
}

template <class T>
void test_conversion() {
  std::mt19937 random(2);
  for (int i = 0; i < 200000; ++i) {
    const double d =
        std::ldexp(static_cast<double>(random()) / 4e9 + 0.1, static_cast<int>(random() % 60) - 40);
    CHECK(same(T(d), d));
    CHECK(same(T(static_cast<float>(d)), static_cast<float>(d)));
  }
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const T value = T::from_bits(static_cast<uint16_t>(bits));
    if (!__hisnan(value)) CHECK(T(static_cast<float>(value)).bits == bits);
  }
}

void test_ties() {
  // 1 + 2^-11 lies halfway between two halves; the last bit of the third operand decides.
  const __half one(1.0f), small(0x1p-11f), tiny(0x1p-24f);
  CHECK(__hfma(one, one, small).bits == 0x3c00);
  CHECK(__hfma(__half(1.0f + 0x1p-10f), one, small).bits == 0x3c02);
  CHECK(__hfma(__half(0x1p-12f), __half(0x1p-12f), __half(1.0f)).bits == 0x3c00);
  CHECK(__hfma(tiny, tiny, __hadd(one, __half(0.0f))).bits == 0x3c00);
  // 2048 + 1 + 2^-20: just above a tie that even would round down.
  CHECK(float(__hfma(__half(0x1p-10f), __half(0x1p-10f), __half(2048.0f))) == 2048.0f);
  CHECK(float(__hfma(__half(1.0f + 0x1p-10f), __half(1.0f), __half(2048.0f))) == 2050.0f);
  CHECK(std::isinf(float(__hmul(__half(256.0f), __half(256.0f)))));
  CHECK(__hmul(__half(-0.0f), __half(3.0f)).bits == 0x8000);
}

}  // namespace

int main() {
  test_arithmetic<__half>(31);
  test_arithmetic<__half>(12);
  test_arithmetic<__nv_bfloat16>(20);
  test_arithmetic<__nv_bfloat16>(250);
  test_conversion<__half>();
  test_conversion<__nv_bfloat16>();
  test_ties();
  return check_result();
}
