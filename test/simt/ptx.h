#pragma once

#include <cmath>
#include <cstdint>

#include "simt/warp.h"

// Twins of the wrappers in src/cuda/ptx.h, where they are described.
//
// mma: products of 16-bit elements are exact in float32; each output starts from d and adds them
// for k = 0, 1, ... 15, rounding each sum to float32. (Hardware adds in an order and with
// intermediate bits that are its own, so results differ from a GPU's in the last bits.) cp.async:
// the destination is NaN from the issue until the wait that needs the copy; only then the source is
// read. Alignment is checked everywhere.
namespace slicellm::cuda {

template <class Element>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                  simt::Where where = simt::Where::current());

void ldmatrix_x4(uint32_t (&r)[4], const void* row, simt::Where where = simt::Where::current());
void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row,
                       simt::Where where = simt::Where::current());
void ldmatrix_x2(uint32_t (&r)[2], const void* row, simt::Where where = simt::Where::current());
void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row,
                       simt::Where where = simt::Where::current());

void cp_async_16(void* shared, const void* global);
void cp_async_16(void* shared, const void* global, int source_bytes);
void cp_async_commit();
void cp_async_wait_for(size_t pending_groups);
template <int kPending>
void cp_async_wait() {
  cp_async_wait_for(kPending);
}

uint4 load_stream_16(const void* global);

inline float exp2_approx(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0.0f : y;
}

template <int kTable>
uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r = 0;
  for (int i = 0; i < 8; ++i) {
    if (kTable >> i & 1) r |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  }
  return r;
}

}  // namespace slicellm::cuda
