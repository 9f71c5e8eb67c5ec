#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "cpu/isa.h"
#include "cpu/memory.h"
#include "cpu/thread_pool.h"
#include "slicellm/ops.h"

// The CPU kernels beside the matrix products, as cpu_device.cc calls them. Matrices are row-major
// float32. Each result depends on its own row alone, never on the other rows or on the threads.
namespace slicellm::cpu {

// Kernels on one row or a piece of it, one table per instruction set. Serial.
struct RowKernels {
  // out[width] = norm(x[width]); out may be x.
  void (*norm)(const float* x, int64_t width, const NormWeights& norm, float* out);
  // out[count] = silu(gate) * up; out may be gate or up. Elements do not depend on count.
  void (*silu_gate)(const float* gate, const float* up, int64_t count, float* out);
  // out[count] = gelu(x), tanh form; out may be x. Elements do not depend on count.
  void (*gelu_tanh)(const float* x, int64_t count, float* out);
};
const RowKernels& row_kernels(Isa isa);

// Embedding rows: the table is read in place (any dtype, decoded row by row).
std::unique_ptr<EmbeddingTable> make_embedding(const Weight& table);
// x[tokens.size(), cols]. Throws Error(invalid_argument) for an id outside the table.
void embed_rows(ThreadPool& pool, std::span<const int32_t> tokens, const EmbeddingTable& table,
                float* x);

// Device::rope_append_attend. `scratch` keeps its memory from call to call.
void rope_append_attend(ThreadPool& pool, Isa isa, Scratch& scratch, const AttentionArgs& args);

}  // namespace slicellm::cpu
