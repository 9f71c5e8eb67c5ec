#pragma once

// CUDA's built-in vector types, as far as the kernels use them.
// clang-format off
#define SIMT_VECTOR_TYPES(base, name, align1, align2, align4)                                  \
  struct alignas(align2) name##2 { base x, y; };                                               \
  struct alignas(align1) name##3 { base x, y, z; };                                            \
  struct alignas(align4) name##4 { base x, y, z, w; };                                         \
  constexpr name##2 make_##name##2(base x, base y) { return {x, y}; }                          \
  constexpr name##3 make_##name##3(base x, base y, base z) { return {x, y, z}; }               \
  constexpr name##4 make_##name##4(base x, base y, base z, base w) { return {x, y, z, w}; }
// clang-format on

SIMT_VECTOR_TYPES(signed char, char, 1, 2, 4)
SIMT_VECTOR_TYPES(unsigned char, uchar, 1, 2, 4)
SIMT_VECTOR_TYPES(short, short, 2, 4, 8)
SIMT_VECTOR_TYPES(unsigned short, ushort, 2, 4, 8)
SIMT_VECTOR_TYPES(int, int, 4, 8, 16)
SIMT_VECTOR_TYPES(unsigned int, uint, 4, 8, 16)
SIMT_VECTOR_TYPES(float, float, 4, 8, 16)
#undef SIMT_VECTOR_TYPES

struct dim3 {
  unsigned int x, y, z;
  constexpr dim3(unsigned int x_ = 1, unsigned int y_ = 1, unsigned int z_ = 1)
      : x(x_), y(y_), z(z_) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
  constexpr operator uint3() const { return {x, y, z}; }
};
