#pragma once

#include <bit>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <type_traits>

#include "simt/block.h"
#include "simt/float16.h"

// Barriers, shuffles, votes and reductions. All lanes that the mask names must come, alive: CUDA
// lets lanes that have exited stay away, this does not.
namespace simt {

using Where = std::source_location;

template <class T>
struct IsPair : std::false_type {};
template <class F>
struct IsPair<Pair<F>> : std::true_type {};
template <class F>
struct IsPair<Small<F>> : std::true_type {};
template <class T>
concept Shuffled = std::is_arithmetic_v<T> || IsPair<T>::value;

template <class T>
struct Shuffle {
  T value;       // in: the lane's own; out: what it receives
  int argument;  // source lane, distance or lane mask
  int width;
};

// kSource(lane in its segment, argument, width) -> lane of the segment; its own where the source
// lies outside.
template <class T, int (*kSource)(int, int, int)>
void shuffle(Block& block, Thread* warp, uint32_t mask) {
  T values[32];
  std::memset(values, 0xff, sizeof values);  // of lanes that do not take part
  for (int lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) values[lane] = static_cast<Shuffle<T>*>(warp[lane].wait.operand)->value;
  }
  for (int lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    auto& operand = *static_cast<Shuffle<T>*>(warp[lane].wait.operand);
    if (!std::has_single_bit(static_cast<unsigned>(operand.width)) || operand.width > 32) {
      block.fail("shuffle of width " + std::to_string(operand.width));
    }
    const int first = lane / operand.width * operand.width;
    operand.value = values[first + kSource(lane - first, operand.argument, operand.width)];
  }
}

constexpr int source_index(int, int index, int width) { return index & (width - 1); }
constexpr int source_up(int lane, int delta, int) { return delta > lane ? lane : lane - delta; }
constexpr int source_down(int lane, int delta, int width) {
  return lane + delta < width ? lane + delta : lane;
}
constexpr int source_xor(int lane, int bits, int width) {
  return (lane ^ bits) < width ? lane ^ bits : lane;
}

template <class T, int (*kSource)(int, int, int)>
T shuffled(const char* name, uint32_t mask, T value, int argument, int width, Where where) {
  Shuffle<T> operand{value, argument, width};
  current->block->meet(name, mask, &operand, &shuffle<T, kSource>, where);
  return operand.value;
}

// All lanes of the mask get combine(...combine(first, second)..., last), in the order of lanes.
template <class T, T (*kCombine)(T, T)>
void reduce(Block&, Thread* warp, uint32_t mask) {
  T result = *static_cast<T*>(warp[std::countr_zero(mask)].wait.operand);
  for (int lane = std::countr_zero(mask) + 1; lane < 32; ++lane) {
    if (mask >> lane & 1) result = kCombine(result, *static_cast<T*>(warp[lane].wait.operand));
  }
  for (int lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) *static_cast<T*>(warp[lane].wait.operand) = result;
  }
}

template <class T, T (*kCombine)(T, T)>
T reduced(const char* name, uint32_t mask, T value, Where where) {
  current->block->meet(name, mask, &value, &reduce<T, kCombine>, where);
  return value;
}

template <class T>
T sum_of(T a, T b) {
  return a + b;
}
template <class T>
T least_of(T a, T b) {
  return b < a ? b : a;
}
template <class T>
T greatest_of(T a, T b) {
  return a < b ? b : a;
}
template <class T>
T bits_and(T a, T b) {
  return a & b;
}
template <class T>
T bits_or(T a, T b) {
  return a | b;
}
template <class T>
T bits_xor(T a, T b) {
  return a ^ b;
}

template <int (*kCombine)(int, int)>
void reduce_block(Block& block) {
  int result = *static_cast<int*>(block.thread(0).wait.operand);
  for (uint32_t i = 1; i < block.threads(); ++i) {
    result = kCombine(result, *static_cast<int*>(block.thread(i).wait.operand));
  }
  for (uint32_t i = 0; i < block.threads(); ++i) {
    *static_cast<int*>(block.thread(i).wait.operand) = result;
  }
}

inline void no_operation(Block&, Thread*, uint32_t) {}

}  // namespace simt

inline void __syncthreads(simt::Where where = simt::Where::current()) {
  simt::current->block->synchronize("__syncthreads", nullptr, nullptr, where);
}
inline int __syncthreads_count(int predicate, simt::Where where = simt::Where::current()) {
  int value = predicate != 0;
  simt::current->block->synchronize("__syncthreads_count", &value,
                                    &simt::reduce_block<simt::sum_of<int>>, where);
  return value;
}
inline int __syncthreads_or(int predicate, simt::Where where = simt::Where::current()) {
  int value = predicate != 0;
  simt::current->block->synchronize("__syncthreads_or", &value,
                                    &simt::reduce_block<simt::bits_or<int>>, where);
  return value;
}
inline int __syncthreads_and(int predicate, simt::Where where = simt::Where::current()) {
  int value = predicate != 0;
  simt::current->block->synchronize("__syncthreads_and", &value,
                                    &simt::reduce_block<simt::bits_and<int>>, where);
  return value;
}
inline void __syncwarp(uint32_t mask = 0xffffffffu, simt::Where where = simt::Where::current()) {
  simt::current->block->meet("__syncwarp", mask, nullptr, &simt::no_operation, where);
}

template <simt::Shuffled T>
T __shfl_sync(uint32_t mask, T value, int lane, int width = 32,
              simt::Where where = simt::Where::current()) {
  return simt::shuffled<T, simt::source_index>("__shfl_sync", mask, value, lane, width, where);
}
template <simt::Shuffled T>
T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int width = 32,
                 simt::Where where = simt::Where::current()) {
  return simt::shuffled<T, simt::source_up>("__shfl_up_sync", mask, value, static_cast<int>(delta),
                                            width, where);
}
template <simt::Shuffled T>
T __shfl_down_sync(uint32_t mask, T value, unsigned delta, int width = 32,
                   simt::Where where = simt::Where::current()) {
  return simt::shuffled<T, simt::source_down>("__shfl_down_sync", mask, value,
                                              static_cast<int>(delta), width, where);
}
template <simt::Shuffled T>
T __shfl_xor_sync(uint32_t mask, T value, int bits, int width = 32,
                  simt::Where where = simt::Where::current()) {
  return simt::shuffled<T, simt::source_xor>("__shfl_xor_sync", mask, value, bits, width, where);
}

inline unsigned __ballot_sync(uint32_t mask, int predicate,
                              simt::Where where = simt::Where::current()) {
  const unsigned bit = predicate ? 1u << simt::current->number % 32 : 0u;
  return simt::reduced<unsigned, simt::bits_or<unsigned>>("__ballot_sync", mask, bit, where);
}
inline int __any_sync(uint32_t mask, int predicate, simt::Where where = simt::Where::current()) {
  return simt::reduced<int, simt::bits_or<int>>("__any_sync", mask, predicate != 0, where);
}
inline int __all_sync(uint32_t mask, int predicate, simt::Where where = simt::Where::current()) {
  return simt::reduced<int, simt::bits_and<int>>("__all_sync", mask, predicate != 0, where);
}

#define SIMT_REDUCE(name, type, combine)                                                    \
  inline type name(uint32_t mask, type value, simt::Where where = simt::Where::current()) { \
    return simt::reduced<type, simt::combine<type>>(#name, mask, value, where);             \
  }
SIMT_REDUCE(__reduce_add_sync, unsigned, sum_of)
SIMT_REDUCE(__reduce_add_sync, int, sum_of)
SIMT_REDUCE(__reduce_min_sync, unsigned, least_of)
SIMT_REDUCE(__reduce_min_sync, int, least_of)
SIMT_REDUCE(__reduce_max_sync, unsigned, greatest_of)
SIMT_REDUCE(__reduce_max_sync, int, greatest_of)
SIMT_REDUCE(__reduce_and_sync, unsigned, bits_and)
SIMT_REDUCE(__reduce_or_sync, unsigned, bits_or)
SIMT_REDUCE(__reduce_xor_sync, unsigned, bits_xor)
#undef SIMT_REDUCE
