#include "simt/ptx.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>

namespace slicellm::cuda {
namespace {

using simt::Block;
using simt::Thread;

constexpr uint32_t kAllLanes = 0xffffffffu;

struct MmaOperand {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
};

template <class Element>
float element(uint32_t pair, int upper) {
  return Element::from_bits(static_cast<uint16_t>(pair >> 16 * upper));
}

template <class Element>
void multiply(Block&, Thread* warp, uint32_t) {
  float a[16][16], b[16][8], d[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& operand = *static_cast<MmaOperand*>(warp[lane].wait.operand);
    const int g = lane / 4, t = lane % 4;
    for (int upper = 0; upper < 2; ++upper) {
      const int k = 2 * t + upper;
      a[g][k] = element<Element>(operand.a[0], upper);
      a[g + 8][k] = element<Element>(operand.a[1], upper);
      a[g][k + 8] = element<Element>(operand.a[2], upper);
      a[g + 8][k + 8] = element<Element>(operand.a[3], upper);
      b[k][g] = element<Element>(operand.b[0], upper);
      b[k + 8][g] = element<Element>(operand.b[1], upper);
      d[g][2 * t + upper] = operand.d[upper];
      d[g + 8][2 * t + upper] = operand.d[2 + upper];
    }
  }
  for (int m = 0; m < 16; ++m) {
    for (int k = 0; k < 16; ++k) {
      for (int n = 0; n < 8; ++n) d[m][n] += a[m][k] * b[k][n];
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    const auto& operand = *static_cast<MmaOperand*>(warp[lane].wait.operand);
    const int g = lane / 4, t = lane % 4;
    for (int upper = 0; upper < 2; ++upper) {
      operand.d[upper] = d[g][2 * t + upper];
      operand.d[2 + upper] = d[g + 8][2 * t + upper];
    }
  }
}

struct LoadOperand {
  uint32_t* r;
  const void* row;
};

template <int kMatrices, bool kTransposed>
void load_matrices(Block& block, Thread* warp, uint32_t) {
  for (int j = 0; j < kMatrices; ++j) {
    uint16_t matrix[8][8];
    for (int row = 0; row < 8; ++row) {
      const void* from = static_cast<LoadOperand*>(warp[8 * j + row].wait.operand)->row;
      if (reinterpret_cast<uintptr_t>(from) % 16 != 0) {
        block.fail("ldmatrix: the address of lane " + std::to_string(8 * j + row) +
                   " is not 16-byte aligned");
      }
      if (!block.is_shared(from, 16)) {
        block.fail("ldmatrix: the 16 bytes of lane " + std::to_string(8 * j + row) +
                   " are not in shared memory");
      }
      std::memcpy(matrix[row], from, 16);
    }
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = lane % 4;
      const uint32_t low = kTransposed ? matrix[2 * t][g] : matrix[g][2 * t];
      const uint32_t high = kTransposed ? matrix[2 * t + 1][g] : matrix[g][2 * t + 1];
      static_cast<LoadOperand*>(warp[lane].wait.operand)->r[j] = high << 16 | low;
    }
  }
}

template <int kMatrices, bool kTransposed>
void ldmatrix(const char* name, uint32_t* r, const void* row, simt::Where where) {
  LoadOperand operand{r, row};
  simt::current->block->meet(name, kAllLanes, &operand, &load_matrices<kMatrices, kTransposed>,
                             where);
}

void finish_copies(Thread& thread, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    const simt::AsyncCopy& copy = thread.copies[i];
    std::memset(copy.to, 0, 16);
    std::memcpy(copy.to, copy.from, copy.bytes);
  }
  thread.copies.erase(thread.copies.begin(), thread.copies.begin() + static_cast<long>(count));
}

}  // namespace

template <class Element>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                  simt::Where where) {
  MmaOperand operand{d, a, b};
  simt::current->block->meet("mma_m16n8k16", kAllLanes, &operand, &multiply<Element>, where);
}
template void mma_m16n8k16<__half>(float (&)[4], const uint32_t (&)[4], const uint32_t (&)[2],
                                   simt::Where);
template void mma_m16n8k16<__nv_bfloat16>(float (&)[4], const uint32_t (&)[4],
                                          const uint32_t (&)[2], simt::Where);

void ldmatrix_x4(uint32_t (&r)[4], const void* row, simt::Where where) {
  ldmatrix<4, false>("ldmatrix_x4", r, row, where);
}
void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, simt::Where where) {
  ldmatrix<4, true>("ldmatrix_x4_trans", r, row, where);
}
void ldmatrix_x2(uint32_t (&r)[2], const void* row, simt::Where where) {
  ldmatrix<2, false>("ldmatrix_x2", r, row, where);
}
void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row, simt::Where where) {
  ldmatrix<2, true>("ldmatrix_x2_trans", r, row, where);
}

void cp_async_16(void* shared, const void* global) { cp_async_16(shared, global, 16); }

void cp_async_16(void* shared, const void* global, int source_bytes) {
  Thread& thread = *simt::current;
  if (source_bytes < 0 || source_bytes > 16) {
    thread.block->fail("cp_async_16 of " + std::to_string(source_bytes) + " bytes");
  }
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 ||
      (source_bytes > 0 && reinterpret_cast<uintptr_t>(global) % 16 != 0)) {
    thread.block->fail("cp_async_16 with an address that is not 16-byte aligned");
  }
  if (!thread.block->is_shared(shared, 16)) {
    thread.block->fail("cp_async_16: the 16 bytes it writes are not in shared memory");
  }
  uint8_t source[16];
  std::memcpy(source, global, static_cast<size_t>(source_bytes));  // faults here, if it must
  asm volatile("" : : "r"(source) : "memory");
  std::memset(shared, 0xff, 16);
  thread.copies.push_back({shared, global, static_cast<uint32_t>(source_bytes)});
}

void cp_async_commit() {
  Thread& thread = *simt::current;
  thread.copy_groups.push_back(thread.copies.size());
}

void cp_async_wait_for(size_t pending_groups) {
  Thread& thread = *simt::current;
  if (thread.copy_groups.size() <= pending_groups) return;
  const size_t done = thread.copy_groups.size() - pending_groups;
  const size_t count = thread.copy_groups[done - 1];
  finish_copies(thread, count);
  thread.copy_groups.erase(thread.copy_groups.begin(),
                           thread.copy_groups.begin() + static_cast<long>(done));
  for (size_t& end : thread.copy_groups) end -= count;
}

uint4 load_stream_16(const void* global) {
  if (reinterpret_cast<uintptr_t>(global) % 16 != 0) {
    simt::current->block->fail("load_stream_16 from an address that is not 16-byte aligned");
  }
  uint4 v;
  std::memcpy(&v, global, sizeof v);
  return v;
}

}  // namespace slicellm::cuda
