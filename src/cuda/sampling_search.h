#pragma once

#include <cstdint>

#include "cuda/kernel.h"

// Finding a token by its rank among the logits of a row, in order from the best, without sorting.
// For the kernels of sampling.cu; everything here is done by all threads of a block together.
namespace slicellm::cuda {

using Mass = unsigned long long;            // in units of 2^-43 of the best token's weight
constexpr double kMassOne = 8796093022208;  // 2^43
constexpr int kBins = 2048;                 // of a histogram

// The logits of one row; all valid, the best one finite.
struct Row {
  const float* logits;
  int32_t vocab;
  float best;
  double temperature;
};

__device__ inline double weight_of(const Row& row, float x) {
  return exp((static_cast<double>(x) - row.best) / row.temperature);
}
__device__ inline Mass mass_of(const Row& row, float x) {
  return static_cast<Mass>(weight_of(row, x) * kMassOne + 0.5);
}

// Bins of 1/64 of a logit, from the best one downwards; the last one is open.
constexpr float kBinsPerUnit = 64;
__device__ inline int bin_of(const Row& row, float x) {
  return static_cast<int>(fminf((row.best - x) * kBinsPerUnit, kBins - 1));
}

// Numbers in the order of logits, the best first; equal for 0 and -0.
__device__ inline uint32_t key_of(float x) {
  const uint32_t bits = __float_as_uint(x + 0.0f);
  return bits >> 31 != 0 ? bits : bits ^ 0x7fffffffu;
}
__device__ inline float logit_of(uint32_t key) {
  return __uint_as_float(key >> 31 != 0 ? key : key ^ 0x7fffffffu);
}

// The sum of `value` over the threads before this one, and over all. Blocks of whole warps.
template <class T>
__device__ inline T exclusive_scan(T value, T* total) {
  SLICELLM_SHARED(T, warp_sums, 32);
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  T sum = value;
  for (unsigned offset = 1; offset < 32; offset *= 2) {
    const T other = __shfl_up_sync(0xffffffffu, sum, offset);
    if (lane >= offset) sum += other;
  }
  __syncthreads();  // sums of an earlier scan have been read
  if (lane == 31) warp_sums[warp] = sum;
  __syncthreads();
  T before = 0;
  *total = 0;
  for (unsigned w = 0; w < blockDim.x / 32; ++w) {
    if (w < warp) before += warp_sums[w];
    *total += warp_sums[w];
  }
  return before + sum - value;
}

template <class T>
__device__ inline T block_total(T value) {
  T total;
  exclusive_scan(value, &total);
  return total;
}

// What a rank counts: tokens, or their masses.
enum class Rank { count, mass };

struct Bins {
  const Mass* mass;       // [kBins]
  const uint32_t* count;  // [kBins]
};

struct Place {
  Mass mass_before;
  uint32_t count_before;
  uint32_t bin;
};

// The bin in which rank `target` lies, where `before` tells what comes before all bins. The target
// must be within the bins. blockDim.x divides kBins.
__device__ inline Place find_bin(const Bins& bins, Rank by, Mass target, Place before) {
  SLICELLM_SHARED(Place, found, 1);
  const uint32_t each = kBins / blockDim.x, first = threadIdx.x * each;
  Mass mass = 0;
  uint32_t count = 0;
  for (uint32_t i = first; i < first + each; ++i) {
    mass += bins.mass[i];
    count += bins.count[i];
  }
  Mass all_mass;
  uint32_t all_count;
  mass = before.mass_before + exclusive_scan(mass, &all_mass);
  count = before.count_before + exclusive_scan(count, &all_count);
  for (uint32_t i = first; i < first + each; ++i) {
    const Mass low = by == Rank::count ? count : mass;
    const Mass here = by == Rank::count ? bins.count[i] : bins.mass[i];
    if (low <= target && target < low + here) found[0] = Place{mass, count, i};
    mass += bins.mass[i];
    count += bins.count[i];
  }
  __syncthreads();
  return found[0];
}

// All tokens of one logit.
struct Group {
  Mass mass_before;  // of the better ones
  uint32_t count_before;
  uint32_t key;
  Mass each;  // mass of one of them
};

// The logit in which rank `target` lies; `bins` are those of bin_of over the whole row.
__device__ inline Group find_logit(const Row& row, const Bins& bins, Rank by, Mass target) {
  SLICELLM_SHARED(Mass, mass, kBins);
  SLICELLM_SHARED(uint32_t, count, kBins);
  Place place = find_bin(bins, by, target, Place{0, 0, 0});
  const int bin = static_cast<int>(place.bin);
  uint32_t key = 0, known = 0;  // bits of the key found so far
  for (int shift = 21; shift >= 0; shift = shift == 21 ? 10 : shift - 10) {  // 11, 11, 10 bits
    const uint32_t digits = shift == 0 ? 1023 : 2047;
    for (int i = threadIdx.x; i < kBins; i += blockDim.x) mass[i] = count[i] = 0;
    __syncthreads();
#pragma unroll 4
    for (int i = threadIdx.x; i < row.vocab; i += blockDim.x) {
      const float x = row.logits[i];
      if (bin_of(row, x) != bin || (key_of(x) & known) != key) continue;
      const uint32_t digit = key_of(x) >> shift & digits;
      atomicAdd(&mass[digit], mass_of(row, x));
      atomicAdd(&count[digit], 1u);
    }
    __syncthreads();
    place = find_bin(Bins{mass, count}, by, target, place);
    key |= place.bin << shift;
    known |= digits << shift;
  }
  return Group{place.mass_before, place.count_before, key, mass_of(row, logit_of(key))};
}

// The mass of the tokens whose weight is at least `least` times the best one's; 0 < least <= 1.
__device__ inline Mass mass_at_least(const Row& row, const Bins& bins, double least) {
  // Only tokens next to the bin of the border are looked at one by one.
  const double border = -log(least) * row.temperature * kBinsPerUnit;
  const int bin = static_cast<int>(fmin(border, static_cast<double>(kBins - 1)));
  Mass mass = 0;
  for (int i = threadIdx.x; i < bin - 1; i += blockDim.x) mass += bins.mass[i];
#pragma unroll 4
  for (int i = threadIdx.x; i < row.vocab; i += blockDim.x) {
    const float x = row.logits[i];
    const int b = bin_of(row, x);
    if (b >= bin - 1 && b <= bin + 1 && weight_of(row, x) >= least) mass += mass_of(row, x);
  }
  return block_total(mass);
}

}  // namespace slicellm::cuda
