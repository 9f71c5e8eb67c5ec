#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "cuda/attention_work.h"
#include "cuda/kv_storage.h"
#include "cuda/rope.h"
#include "cuda/signature.h"
#include "slicellm/batch.h"
#include "slicellm/ops.h"

// Rotation, KV append and attention of a step: planned once on the host, then run for each layer.
// Queries are rounded to float16 after the rotation, softmax weights to float16; sums are float32.
// A row's result is bit-equal however its sequence was cut into steps and whatever runs beside it.
namespace slicellm::cuda {

// The work of a step, as numbers for the device. A decode step's sizes are rounded up to powers of
// two, with items that do nothing, so that its launches are those of many other steps.
class AttentionPlan {
 public:
  AttentionPlan() = default;
  // `multiprocessors` only decides how the work is cut. Throws as padded_head_dim.
  AttentionPlan(const Batch& batch, const AttentionShape& shape, int multiprocessors);

  const AttentionShape& shape() const { return shape_; }
  int64_t tokens() const { return tokens_; }
  // Everything that the kernels read, to be copied to the device as it is.
  std::span<const int32_t> image() const { return image_; }

  // Adds what the launches take from the plan.
  void add_to(Signature& signature) const;

  // Device memory for an AttentionRun, besides the image; what a step leaves there is of no use to
  // the next, but for the counters: zero before the first use, they are left zero.
  size_t query_bytes() const;
  size_t partial_bytes() const;
  size_t counter_bytes() const;

  // Bounds of the three together and of the images of a step (one for each shape).
  static size_t most_bytes(const StepBounds& most, int multiprocessors);
  static size_t most_image_bytes(const StepBounds& most, int multiprocessors);

 private:
  friend void attend(cudaStream_t, const AttentionPlan&, const struct AttentionRun&);

  AttentionShape shape_;
  int64_t tokens_ = 0, items_ = 0;
  std::vector<int32_t> image_;  // TokenPlace [tokens], AttentionItem [items], block tables
  int64_t first_item_ = 0, first_table_ = 0;  // in the image
  int64_t partial_rows_ = 0;                  // for each kv head
  int32_t cut_tiles_ = 0;                     // for each kv head
  bool wide_ = false;                         // there are wide tiles
};

// One layer. Pointers are to device memory.
struct AttentionRun {
  const int32_t* image = nullptr;  // the plan's
  const float* qkv = nullptr;      // [n, (heads + 2*kv_heads) * head_dim]
  float* out = nullptr;            // [n, heads * head_dim]
  const CudaKvStorage* kv = nullptr;
  int32_t layer = 0;
  float scale = 0;  // multiplies q.k; above 0
  const CudaRope* rope = nullptr;
  __half* queries = nullptr;      // query_bytes()
  std::byte* partials = nullptr;  // partial_bytes(), 16-byte aligned
  int32_t* counters = nullptr;    // counter_bytes()
};

// Rotates q, which goes to run.queries, and k; appends k and v to the cache. One launch.
void rope_append(cudaStream_t stream, const AttentionPlan& plan, const AttentionRun& run);
// Attends with run.queries. One launch.
void attend(cudaStream_t stream, const AttentionPlan& plan, const AttentionRun& run);

// The head dimension that the kernels work with: 32, 64, 96 or 128. Throws Error(unsupported) for
// one that is odd or above 128.
int32_t padded_head_dim(int32_t head_dim);

// Lets the kernels for such a cache use the shared memory they need on the current device; before
// the first attend() (CudaKvStorage does it).
void prepare_attention(const KvLayout& layout);

}  // namespace slicellm::cuda
