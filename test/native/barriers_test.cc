// How often the threads have to wait for each other in one layer.

#include <cstdint>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "cpu/cpu_device.h"

namespace slicellm {
namespace {

constexpr int32_t kHeads = 8, kKvHeads = 2, kHeadDim = 64, kInner = 1408;
constexpr int64_t kHidden = kHeads * kHeadDim, kQkv = (kHeads + 2 * kKvHeads) * kHeadDim;

// A layer of a small Llama, with weights that mean nothing.
class Layer {
 public:
  explicit Layer(int threads) : device_({threads, ""}) {
    NormWeights norm;
    norm.weight.assign(kHidden, 1.0f);
    norm_ = device_.pack_norm(norm);
    qkv_ = pack(kQkv, kHidden, false);
    out_ = pack(kHidden, kHidden, false);
    up_ = pack(2 * kInner, kHidden, true);
    down_ = pack(kHidden, kInner, false);
    RopeTable rope;
    rope.rotary_dim = kHeadDim;
    rope.positions = 2048;
    rope.cos.assign(size_t{2048} * kHeadDim / 2, 1.0f);
    rope.sin.assign(size_t{2048} * kHeadDim / 2, 0.0f);
    rope_ = device_.pack_rope(std::make_shared<RopeTable>(rope));
  }

  // Barriers of one pass over `rows` sequences of `count` tokens after `past`.
  uint64_t barriers(int32_t rows, int32_t count, int32_t past) {
    const int64_t n = int64_t{rows} * count;
    const KvLayout layout{.layers = 1, .kv_heads = kKvHeads, .head_dim = kHeadDim};
    const int32_t blocks = (past + count + layout.block_tokens - 1) / layout.block_tokens;
    const auto kv = device_.allocate_kv(layout, rows * blocks);
    Batch batch;
    batch.tokens.assign(static_cast<size_t>(n), 0);
    for (int32_t i = 0; i < rows; ++i) {
      BatchSequence& s = batch.sequences.emplace_back();
      s.begin = i * count;
      s.count = count;
      s.past = past;
      s.prompt_len = past + count;
      s.blocks.resize(blocks);
      std::iota(s.blocks.begin(), s.blocks.end(), i * blocks);
    }
    const auto x = device_.allocate(n * kHidden), qkv = device_.allocate(n * kQkv);
    const auto attended = device_.allocate(n * kHidden), inner = device_.allocate(n * kInner);
    AttentionArgs attention;
    attention.batch = &batch;
    attention.qkv = qkv.get();
    attention.out = attended.get();
    attention.kv = kv.get();
    attention.shape = {.heads = kHeads, .kv_heads = kKvHeads, .head_dim = kHeadDim};
    attention.scale = 1;
    attention.rope = rope_.get();
    const uint64_t before = device_.barriers();
    device_.norm_linear(*x, n, *norm_, *qkv_, false, *qkv);
    device_.rope_append_attend(attention);
    device_.linear_add(*attended, n, *out_, 1, *x);
    device_.norm_linear_act(*x, n, *norm_, *up_, GateActivation::silu_gate, false, *inner);
    device_.linear_add(*inner, n, *down_, 1, *x);
    return device_.barriers() - before;
  }

 private:
  std::unique_ptr<PackedLinear> pack(int64_t rows, int64_t cols, bool gated) {
    auto values = std::make_shared<std::vector<float>>(rows * cols, 0.01f);
    Weight w;
    w.shape = {rows, cols};
    w.data = values->data();
    w.data_bytes = values->size() * sizeof(float);
    w.owner = values;
    return device_.pack({&w, 1}, {}, ActivationType::automatic, gated);
  }

  cpu::CpuDevice device_;
  std::unique_ptr<PackedNorm> norm_;
  std::unique_ptr<PackedRope> rope_;
  std::unique_ptr<PackedLinear> qkv_, out_, up_, down_;
};

void check(Layer& layer, int32_t rows, int32_t count, int32_t past, uint64_t expected) {
  const uint64_t found = layer.barriers(rows, count, past);
  CHECK_MESSAGE(found == expected, std::to_string(rows) + " x " + std::to_string(count) +
                                       " tokens after " + std::to_string(past) + ": " +
                                       std::to_string(found) + " barriers, not " +
                                       std::to_string(expected));
}

void test_layer() {
  Layer two(2), one(1);
  check(two, 1, 1, 16, 4);    // each matrix; attention is too little for two threads
  check(two, 1, 1, 1500, 5);  // each matrix, attention
  check(two, 8, 1, 1500, 5);
  check(two, 64, 1, 1500, 9);  // 64 tokens are too many for one thread to norm and quantise
  check(two, 1, 64, 16, 10);   // and to append to one sequence
  check(one, 8, 1, 1500, 0);
}

}  // namespace
}  // namespace slicellm

int main() {
  slicellm::test_layer();
  return slicellm::test::check_result();
}
