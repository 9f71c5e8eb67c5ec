#pragma once

// What a .cu file needs, in both worlds: compiled by nvcc for a GPU, or by the C++ compiler for the
// emulator in test/simt (-DSLICELLM_SIMT, whose include path provides headers of the same names).
// Beyond these macros, kernels are plain CUDA C++; inline PTX lives in ptx.h only.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

// SLICELLM_LAUNCH(kernel, grid, block, shared_bytes, stream, arguments...)
//   Launches `kernel`; one with template arguments goes in parentheses: (gemv<int, 4>). Arguments
//   are copied by value. Errors are those of cudaGetLastError().
// SLICELLM_SHARED(type, name, count)
//   `type name[count]`, static shared memory, 16-byte aligned, uninitialised.
// SLICELLM_DYNAMIC_SHARED(type, name)
//   `type* name`, the launch's `shared_bytes`, 16-byte aligned. A kernel that needs several arrays
//   carves them out of this one.
#ifdef SLICELLM_SIMT
#include "simt/launch.h"
#define SLICELLM_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ::simt::launch(#kernel, kernel, (grid), (block), (shared_bytes),      \
                 (stream)__VA_OPT__(, ) __VA_ARGS__)
#define SLICELLM_SHARED(type, name, count) SIMT_SHARED(type, name, count)
#define SLICELLM_DYNAMIC_SHARED(type, name) \
  type* const name = static_cast<type*>(::simt::dynamic_shared())
#else
#define SLICELLM_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__)
#define SLICELLM_SHARED(type, name, count) __shared__ __align__(16) type name[count]
#define SLICELLM_DYNAMIC_SHARED(type, name)                                \
  extern __shared__ __align__(16) unsigned char slicellm_dynamic_shared[]; \
  type* const name = reinterpret_cast<type*>(slicellm_dynamic_shared)
#endif
