#pragma once

#include <cstdint>

#include "cuda/kernel.h"

// Instructions that CUDA C++ has no name for: the project's only inline PTX (PTX ISA 7.4, sm_80 or
// newer). The emulator's twins are in test/simt/ptx.h.
//
// Matrix fragments, as the PTX ISA defines them ("Matrix Fragments for mma.m16n8k16 with floating
// point type"). With g = lane / 4 and t = lane % 4, a lane of the warp holds 16-bit elements in
// pairs (lower half of a register first):
//
//   A, 16 rows x 16 (k):  a[0] = A[g    ][2t, 2t+1]      a[2] = A[g    ][2t+8, 2t+9]
//                         a[1] = A[g + 8][2t, 2t+1]      a[3] = A[g + 8][2t+8, 2t+9]
//   B, 16 (k) x 8 cols:   b[0] = B[2t, 2t+1][g]          b[1] = B[2t+8, 2t+9][g]
//   C and D, 16 x 8:      d[0], d[1] = D[g][2t], D[g][2t+1]
//                         d[2], d[3] = D[g + 8][2t], D[g + 8][2t+1]
//
// Row r of A is output row r; with weights as A and tokens as B's columns, k runs along both in
// memory. Two registers of D, rounded to 16 bits and paired, are a register of the next A.
//
// ldmatrix loads 8x8 matrices of 16-bit elements: the lanes 8j..8j+7 give the addresses of the rows
// of matrix j (16 bytes each, 16-byte aligned, in shared memory; all lanes' addresses must be valid
// for x4, the first 16 lanes' for x2), and register j of each lane receives of matrix M
//   M[g][2t, 2t+1],   or, transposed (.trans),   M[2t][g], M[2t+1][g].
// Plain loads give A (and B stored by columns: k contiguous), transposed ones B stored by rows.
//
// mma and ldmatrix must be reached by all 32 lanes together.
#ifdef SLICELLM_SIMT
#include "simt/ptx.h"
#else
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "slicellm's kernels need sm_80 or newer (m16n8k16, cp.async)"
#endif

namespace slicellm::cuda {

// d += a * b, accumulated in float32. Element is __half or __nv_bfloat16.
template <class Element>
__device__ inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

template <>
__device__ inline void mma_m16n8k16<__half>(float (&d)[4], const uint32_t (&a)[4],
                                            const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <>
__device__ inline void mma_m16n8k16<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4],
                                                   const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ inline void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

__device__ inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

__device__ inline void ldmatrix_x2(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}

__device__ inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}

// Copies 16 bytes (both 16-byte aligned) from global to shared memory, asynchronously and past L1;
// they may be read after cp_async_wait of their group (and a barrier, by other threads).
__device__ inline void cp_async_16(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)),
               "l"(__cvta_generic_to_global(global))
               : "memory");
}

// The same for the first `source_bytes` (0..16) of them; the rest becomes zero. With 0, `global`
// is not read.
__device__ inline void cp_async_16(void* shared, const void* global, int source_bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(__cvta_generic_to_global(global)), "r"(source_bytes)
               : "memory");
}

// Ends the thread's current group of copies.
__device__ inline void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most the thread's kPending latest groups are unfinished.
template <int kPending>
__device__ inline void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// 16 bytes (aligned) of global memory that no kernel writes meanwhile, read once: not kept in L1.
__device__ inline uint4 load_stream_16(const void* global) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(__cvta_generic_to_global(global)));
  return v;
}

// 2^x to about 2 ulp; subnormal results are 0; 2^0 is 1 and 2^-infinity 0 exactly.
__device__ inline float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Any bitwise function of three words: bit i of the result is bit (4a + 2b + c) of kTable. For
// (a & b) | c: kTable = (0xf0 & 0xcc) | 0xaa.
template <int kTable>
__device__ inline uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r;
  asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(r) : "r"(a), "r"(b), "r"(c), "n"(kTable));
  return r;
}

}  // namespace slicellm::cuda
#endif
