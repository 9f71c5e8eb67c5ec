#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "cpu/kv_storage.h"
#include "cpu/ops_cpu.h"
#include "slicellm/dtype.h"

namespace slicellm::cpu {
namespace {

void rotate_pair(float* a, float* b, float cos, float sin) {
  const float x = *a, y = *b;
  *a = x * cos - y * sin;
  *b = y * cos + x * sin;
}

void rotate(const RopeTable& rope, float* head, int32_t head_dim, int32_t position,
            int32_t prompt_len) {
  const int32_t half = rope.rotary_dim / 2;
  const auto cos = [&](int32_t p, int32_t i) { return rope.cos[int64_t{p} * half + i]; };
  const auto sin = [&](int32_t p, int32_t i) { return rope.sin[int64_t{p} * half + i]; };
  switch (rope.style) {
    case RopeStyle::half:
      for (int32_t i = 0; i < half; ++i) {
        rotate_pair(head + i, head + i + half, cos(position, i), sin(position, i));
      }
      break;
    case RopeStyle::interleaved:
      for (int32_t i = 0; i < half; ++i) {
        rotate_pair(head + 2 * i, head + 2 * i + 1, cos(position, i), sin(position, i));
      }
      break;
    case RopeStyle::glm_2d: {
      // [gMASK] is the prompt's last token but one; the output counts blocks from 1 at <sop>.
      const bool context = position < prompt_len - 1;
      const int32_t first = context ? position : std::max(prompt_len - 2, 0);
      const int32_t second = context ? 0 : position - prompt_len + 2;
      float* other = head + head_dim / 2;
      for (int32_t i = 0; i < half; ++i) {
        rotate_pair(head + i, head + i + half, cos(first, i), sin(first, i));
        rotate_pair(other + i, other + i + half, cos(second, i), sin(second, i));
      }
      break;
    }
  }
}

void store(DType dtype, const float* from, int32_t count, std::byte* to) {
  if (dtype == DType::float32) {
    std::memcpy(to, from, size_t{4} * count);
    return;
  }
  for (int32_t i = 0; i < count; ++i) {
    const uint16_t h = float_to_half(from[i]);
    std::memcpy(to + 2 * i, &h, 2);
  }
}

void load(DType dtype, const std::byte* from, int32_t count, float* to) {
  if (dtype == DType::float32) {
    std::memcpy(to, from, size_t{4} * count);
    return;
  }
  for (int32_t i = 0; i < count; ++i) {
    uint16_t h;
    std::memcpy(&h, from + 2 * i, 2);
    to[i] = half_to_float(h);
  }
}

}  // namespace

void rope_append_attend(ThreadPool&, Isa, Scratch&, const AttentionArgs& args) {
  const auto& kv = static_cast<const CpuKvStorage&>(*args.kv);
  const KvLayout& layout = kv.layout();
  const int32_t dim = args.head_dim;
  const int64_t stride = int64_t{args.heads + 2 * args.kv_heads} * dim;
  std::vector<float> row(dim), scores;
  for (const BatchSequence& sequence : args.batch->sequences) {
    const auto slot = [&](int32_t position, int which, int32_t head) {
      return kv.row(sequence.blocks[position / layout.block_tokens], args.layer, which,
                    position % layout.block_tokens, head);
    };
    for (int32_t i = 0; i < sequence.count; ++i) {
      float* qkv = args.qkv->data() + (sequence.begin + i) * stride;
      const int32_t position = sequence.past + i;
      for (int32_t h = 0; h < args.heads + args.kv_heads; ++h) {
        rotate(*args.rope, qkv + h * dim, dim, position, sequence.prompt_len);
      }
      for (int32_t h = 0; h < args.kv_heads; ++h) {
        store(layout.dtype, qkv + (args.heads + h) * dim, dim, slot(position, 0, h));
        store(layout.dtype, qkv + (args.heads + args.kv_heads + h) * dim, dim,
              slot(position, 1, h));
      }
    }
    for (int32_t i = 0; i < sequence.count; ++i) {
      const float* q = args.qkv->data() + (sequence.begin + i) * stride;
      float* out = args.out->data() + int64_t{sequence.begin + i} * args.heads * dim;
      const int32_t position = sequence.past + i;
      int32_t last = position;
      if (args.bidirectional_prompt && position < sequence.prompt_len - 1) {
        last = std::min(sequence.prompt_len - 2, sequence.past + sequence.count - 1);
      }
      const int32_t first =
          args.sliding_window > 0 ? std::max(0, position - args.sliding_window + 1) : 0;
      for (int32_t h = 0; h < args.heads; ++h) {
        const int32_t kv_head = h / (args.heads / args.kv_heads);
        scores.assign(last - first + 1, 0);
        float highest = -INFINITY;
        for (int32_t p = first; p <= last; ++p) {
          load(layout.dtype, slot(p, 0, kv_head), dim, row.data());
          float dot = 0;
          for (int32_t d = 0; d < dim; ++d) dot += q[h * dim + d] * row[d];
          scores[p - first] = dot * args.scale;
          highest = std::max(highest, scores[p - first]);
        }
        float sum = 0;
        for (float& s : scores) sum += s = std::exp(s - highest);
        std::fill_n(out + h * dim, dim, 0.0f);
        for (int32_t p = first; p <= last; ++p) {
          load(layout.dtype, slot(p, 1, kv_head), dim, row.data());
          const float weight = scores[p - first] / sum;
          for (int32_t d = 0; d < dim; ++d) out[h * dim + d] += weight * row[d];
        }
      }
    }
  }
}

}  // namespace slicellm::cpu
