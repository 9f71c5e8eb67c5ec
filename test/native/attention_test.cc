// Attention against a naive float64 implementation, and bit-equality of a task's results under
// random chunkings, block tables, neighbours and thread counts.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/isa.h"
#include "slicellm/error.h"
#include "slicellm/ops.h"

namespace slicellm {
namespace {

using Random = std::mt19937;

struct Shape {
  RopeStyle style = RopeStyle::half;
  int32_t heads = 2, kv_heads = 1, head_dim = 64, rotary_dim = 64;
  DType kv_dtype = DType::float16;
  int32_t block_tokens = 16;
  int32_t sliding_window = 0;
  bool bidirectional = false;

  int64_t qkv_width() const { return int64_t{head_dim} * (heads + 2 * kv_heads); }
  int64_t out_width() const { return int64_t{head_dim} * heads; }
  float scale() const { return 1 / std::sqrt(static_cast<float>(head_dim)); }
  std::string text() const {
    return "style " + std::to_string(static_cast<int>(style)) + ", heads " + std::to_string(heads) +
           "/" + std::to_string(kv_heads) + ", dim " + std::to_string(head_dim) + ", kv " +
           to_string(kv_dtype) + ", block " + std::to_string(block_tokens) + ", window " +
           std::to_string(sliding_window);
  }
};

// A task's q, k, v before the rotation, a row a token.
struct Task {
  int32_t prompt_len = 0;
  std::vector<float> qkv;
  int32_t tokens(const Shape& s) const { return static_cast<int32_t>(qkv.size() / s.qkv_width()); }
};

Task make_task(const Shape& shape, int32_t tokens, int32_t prompt_len, Random& random) {
  std::normal_distribution<float> normal;
  Task task{prompt_len, std::vector<float>(tokens * shape.qkv_width())};
  for (float& x : task.qkv) x = normal(random);
  for (size_t i = 0; i < task.qkv.size(); i += 97) task.qkv[i] *= 6;  // peaks in the softmax
  return task;
}

RopeTable make_rope(const Shape& shape, int32_t positions) {
  RopeTable table{shape.style, shape.rotary_dim, positions, {}, {}};
  for (int32_t p = 0; p < positions; ++p) {
    for (int32_t i = 0; i < shape.rotary_dim / 2; ++i) {
      const double angle = p * std::pow(10000.0, -2.0 * i / shape.rotary_dim);
      table.cos.push_back(static_cast<float>(std::cos(angle)));
      table.sin.push_back(static_cast<float>(std::sin(angle)));
    }
  }
  return table;
}

// ---- the reference ------------------------------------------------------------------------------

// Rotates the complex number of each pair by position / 10000^(2i/dim) (Su et al., "RoFormer").
void rotate_reference(const Shape& shape, int32_t index, int32_t prompt_len,
                      std::vector<double>& x) {
  const auto rotate = [&](int32_t first, int32_t second, int32_t i, int32_t position) {
    const double angle = position * std::pow(10000.0, -2.0 * i / shape.rotary_dim);
    const double a = x[first], b = x[second];
    x[first] = a * std::cos(angle) - b * std::sin(angle);
    x[second] = a * std::sin(angle) + b * std::cos(angle);
  };
  // ChatGLM-6B: the context ends before <sop>, the last prompt token; [GMASK] is its last token.
  const int32_t context = prompt_len - 1;
  for (int32_t i = 0; i < shape.rotary_dim / 2; ++i) {
    const int32_t pairs = shape.rotary_dim / 2;
    if (shape.style == RopeStyle::half) rotate(i, i + pairs, i, index);
    if (shape.style == RopeStyle::interleaved) rotate(2 * i, 2 * i + 1, i, index);
    if (shape.style == RopeStyle::glm_2d) {
      const int32_t half = shape.head_dim / 2;
      rotate(i, i + pairs, i, index < context ? index : context - 1);
      rotate(half + i, half + i + pairs, i, index < context ? 0 : index - context + 1);
    }
  }
}

// K or V of a token as the cache keeps it.
void store(const Shape& shape, std::vector<double>& x) {
  double largest = 0;
  for (const double v : x) largest = std::max(largest, std::abs(v));
  const double scale = half_to_float(float_to_half(static_cast<float>(largest / 127)));
  for (double& v : x) {
    if (shape.kv_dtype == DType::int8) {
      v = scale > 0 ? std::clamp(std::nearbyint(v / scale), -127.0, 127.0) * scale : 0;
    } else {
      const auto f = static_cast<float>(v);
      v = shape.kv_dtype == DType::float16 ? half_to_float(float_to_half(f)) : f;
    }
  }
}

std::vector<double> attend_reference(const Shape& shape, const Task& task) {
  const int32_t n = task.tokens(shape), dim = shape.head_dim;
  const auto head = [&](int32_t token, int32_t h, bool rotated) {
    const float* from = task.qkv.data() + token * shape.qkv_width() + int64_t{h} * dim;
    std::vector<double> x(from, from + dim);
    if (rotated) rotate_reference(shape, token, task.prompt_len, x);
    return x;
  };
  std::vector<double> out(n * shape.out_width());
  for (int32_t kv = 0; kv < shape.kv_heads; ++kv) {
    std::vector<std::vector<double>> keys, values;
    for (int32_t t = 0; t < n; ++t) {
      keys.push_back(head(t, shape.heads + kv, true));
      values.push_back(head(t, shape.heads + shape.kv_heads + kv, false));
      store(shape, keys.back());
      store(shape, values.back());
    }
    const int32_t group = shape.heads / shape.kv_heads;
    for (int32_t h = kv * group; h < (kv + 1) * group; ++h) {
      for (int32_t t = 0; t < n; ++t) {
        const std::vector<double> query = head(t, h, true);
        std::vector<double> weights(n, 0);
        double sum = 0;
        for (int32_t j = 0; j < n; ++j) {
          const int32_t context = task.prompt_len - 1;
          bool visible = j <= t;
          if (shape.bidirectional && t < context && j < context) visible = true;
          if (shape.sliding_window > 0 && t - j >= shape.sliding_window) visible = false;
          if (!visible) continue;
          double dot = 0;
          for (int32_t d = 0; d < dim; ++d) dot += query[d] * keys[j][d];
          weights[j] = std::exp(dot * shape.scale());
          sum += weights[j];
        }
        double* to = out.data() + t * shape.out_width() + int64_t{h} * dim;
        for (int32_t j = 0; j < n; ++j) {
          for (int32_t d = 0; d < dim; ++d) to[d] += weights[j] / sum * values[j][d];
        }
      }
    }
  }
  return out;
}

// ---- running the op -----------------------------------------------------------------------------

// A device with one KV layer pool, some tasks in it, and steps of any mixture of them.
class Runner {
 public:
  Runner(const Shape& shape, const std::vector<Task>& tasks, int threads, const std::string& isa,
         Random& random)
      : shape_(shape), tasks_(tasks), device_(make_cpu_device({threads, isa})) {
    int32_t longest = 0, blocks = 3;
    for (const Task& task : tasks) {
      longest = std::max(longest, task.tokens(shape));
      blocks += task.tokens(shape) / shape.block_tokens + 1;
    }
    rope_ = device_->pack_rope(std::make_shared<RopeTable>(make_rope(shape, longest)));
    const KvLayout layout{2, shape.kv_heads, shape.head_dim, shape.block_tokens, shape.kv_dtype};
    kv_ = device_->allocate_kv(layout, blocks);
    // What blocks held before must not matter: all bits set is NaN in every float type.
    const std::vector<char> poison(layout.block_bytes(), '\xff');
    std::vector<int32_t> free;
    for (int32_t b = 0; b < blocks; ++b) {
      kv_->copy_from_host(b, poison.data());
      free.push_back(b);
    }
    std::shuffle(free.begin(), free.end(), random);
    for (const Task& task : tasks) {
      const int32_t count = (task.tokens(shape) + shape.block_tokens - 1) / shape.block_tokens;
      tables_.emplace_back(free.end() - count, free.end());
      free.resize(free.size() - count);
      past_.push_back(0);
      results_.emplace_back(task.tokens(shape) * shape.out_width());
    }
  }

  int32_t left(size_t task) const { return tasks_[task].tokens(shape_) - past_[task]; }

  // One step: (task, number of its next tokens).
  void step(const std::vector<std::pair<size_t, int32_t>>& chunks) {
    Batch batch;
    std::vector<float> rows;
    for (const auto& [task, count] : chunks) {
      BatchSequence s;
      s.begin = static_cast<int32_t>(batch.tokens.size());
      s.count = count;
      s.past = past_[task];
      s.prompt_len = tasks_[task].prompt_len;
      const int32_t used = (s.past + count + shape_.block_tokens - 1) / shape_.block_tokens;
      s.blocks.assign(tables_[task].begin(), tables_[task].begin() + used);
      batch.sequences.push_back(s);
      batch.tokens.resize(batch.tokens.size() + count);
      const float* from = tasks_[task].qkv.data() + s.past * shape_.qkv_width();
      rows.insert(rows.end(), from, from + count * shape_.qkv_width());
    }
    const auto n = static_cast<int64_t>(batch.tokens.size());
    const auto qkv = device_->allocate(n * shape_.qkv_width());
    const auto out = device_->allocate(n * shape_.out_width());
    std::copy(rows.begin(), rows.end(), qkv->data());
    AttentionArgs args;
    args.batch = &batch;
    args.qkv = qkv.get();
    args.out = out.get();
    args.kv = kv_.get();
    args.layer = 1;
    args.shape = {.heads = shape_.heads,
                  .kv_heads = shape_.kv_heads,
                  .head_dim = shape_.head_dim,
                  .rope_style = shape_.style,
                  .sliding_window = shape_.sliding_window,
                  .bidirectional_prompt = shape_.bidirectional};
    args.scale = shape_.scale();
    args.rope = rope_.get();
    device_->begin_step(batch, {}, {&args.shape, 1});
    device_->rope_append_attend(args);
    for (size_t i = 0; i < chunks.size(); ++i) {
      const BatchSequence& s = batch.sequences[i];
      std::copy_n(out->data() + s.begin * shape_.out_width(), s.count * shape_.out_width(),
                  results_[chunks[i].first].data() + s.past * shape_.out_width());
      past_[chunks[i].first] += s.count;
    }
  }

  const std::vector<float>& result(size_t task) const { return results_[task]; }

 private:
  Shape shape_;
  const std::vector<Task>& tasks_;
  std::shared_ptr<Device> device_;
  std::unique_ptr<PackedRope> rope_;
  std::unique_ptr<KvStorage> kv_;
  std::vector<std::vector<int32_t>> tables_;
  std::vector<int32_t> past_;
  std::vector<std::vector<float>> results_;
};

// ---- tests --------------------------------------------------------------------------------------

std::vector<Shape> shapes() {
  const auto f32 = DType::float32, f16 = DType::float16, i8 = DType::int8;
  const auto half = RopeStyle::half, pairs = RopeStyle::interleaved, glm = RopeStyle::glm_2d;
  return {
      {half, 14, 2, 64, 64, f16, 16, 0, false},    // Qwen2.5-0.5B
      {half, 4, 4, 80, 80, f32, 16, 0, false},     // no sharing, odd head size
      {half, 5, 1, 100, 100, f16, 16, 0, false},   // not a multiple of a panel
      {half, 6, 2, 96, 48, f32, 32, 0, false},     // half of the head rotated
      {half, 2, 1, 112, 112, f16, 64, 37, false},  // sliding window, larger blocks
      {half, 3, 3, 64, 64, f32, 16, 300, false},   // window longer than a split
      {pairs, 8, 2, 128, 64, f16, 16, 0, false},   // ChatGLM2
      {pairs, 13, 1, 20, 20, f32, 16, 0, false},   // many rows, small odd head
      {half, 14, 2, 64, 64, i8, 16, 0, false},    {pairs, 5, 1, 100, 100, i8, 64, 37, false},
      {glm, 2, 2, 128, 64, f16, 16, 0, true},  // ChatGLM-6B
      {glm, 3, 3, 32, 16, f32, 256, 0, true},
  };
}

void check_reference(const Shape& shape, const std::string& isa, Random& random) {
  for (const int32_t n : {2, 19, 263}) {
    const int32_t prompt_len = std::max(2, n - 7);
    const std::vector<Task> tasks = {make_task(shape, n, prompt_len, random)};
    Runner runner(shape, tasks, 2, isa, random);
    runner.step({{0, prompt_len}});
    while (runner.left(0) > 0) runner.step({{0, 1}});
    const std::vector<double> expected = attend_reference(shape, tasks[0]);
    double worst = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      const double error = std::abs(runner.result(0)[i] - expected[i]);
      worst = error <= worst ? worst : error;  // keeps NaN
    }
    // Values are of size 1 to 6. A rounding of K or V to the neighbouring half, which the reference
    // may do differently at a tie, moves a weight by 1e-3 of itself; these seeds have no such tie
    // of int8 codes.
    const double bound = shape.kv_dtype == DType::float32   ? 2e-5
                         : shape.kv_dtype == DType::float16 ? 2e-3
                                                            : 5e-3;
    CHECK_MESSAGE(worst < bound, shape.text() + ", " + isa + ", " + std::to_string(n) +
                                     " tokens: error " + std::to_string(worst));
  }
}

// A task's results when it runs alone, its prompt in one chunk, on one thread.
std::vector<float> run_alone(const Shape& shape, const Task& task, const std::string& isa,
                             Random& random) {
  const std::vector<Task> tasks = {task};
  Runner runner(shape, tasks, 1, isa, random);
  runner.step({{0, task.prompt_len}});
  while (runner.left(0) > 0) runner.step({{0, 1}});
  return runner.result(0);
}

void check_schedules(const Shape& shape, const std::string& isa, Random& random) {
  const auto pick = [&](int32_t low, int32_t high) {
    return std::uniform_int_distribution<int32_t>(low, high)(random);
  };
  std::vector<Task> tasks;
  for (const int32_t n : {pick(2, 40), pick(50, 100), pick(260, 320)}) {
    tasks.push_back(make_task(shape, n, pick(std::max(2, n - 30), n), random));
  }
  std::vector<std::vector<float>> alone;
  for (const Task& task : tasks) alone.push_back(run_alone(shape, task, isa, random));
  for (int threads = 1; threads <= 4; ++threads) {
    Runner runner(shape, tasks, threads, isa, random);
    const int32_t longest_chunk = threads == 3 ? 300 : 60;
    while (true) {
      std::vector<std::pair<size_t, int32_t>> chunks;
      for (size_t t = 0; t < tasks.size(); ++t) {
        const int32_t left = runner.left(t);
        if (left == 0 || pick(0, 3) == 0) continue;
        const int32_t done = tasks[t].tokens(shape) - left;
        const int32_t prompt_left = tasks[t].prompt_len - done;
        int32_t count = std::min(left, pick(0, 1) == 0 ? 1 : pick(1, longest_chunk));
        // A prompt that attends both ways comes in one chunk, alone or with output behind it.
        if (shape.bidirectional && prompt_left > 0) count = std::max(count, prompt_left);
        chunks.emplace_back(t, count);
      }
      std::shuffle(chunks.begin(), chunks.end(), random);
      if (!chunks.empty()) runner.step(chunks);
      if (runner.left(0) + runner.left(1) + runner.left(2) == 0) break;
    }
    for (size_t t = 0; t < tasks.size(); ++t) {
      const auto& got = runner.result(t);
      CHECK_MESSAGE(std::memcmp(got.data(), alone[t].data(), got.size() * sizeof(float)) == 0,
                    shape.text() + ", " + isa + ", " + std::to_string(threads) + " threads, task " +
                        std::to_string(t));
    }
  }
}

// One long decode row whose context is cut between threads.
void check_context_split(const std::string& isa, Random& random) {
  const Shape shape{RopeStyle::half, 7, 1, 64, 64, DType::float16, 16, 0, false};
  const std::vector<Task> tasks = {make_task(shape, 1101, 1100, random)};
  std::vector<float> first;
  for (int threads = 1; threads <= 5; ++threads) {
    Runner runner(shape, tasks, threads, isa, random);
    runner.step({{0, 1100}});
    runner.step({{0, 1}});
    if (threads == 1) first = runner.result(0);
    CHECK_MESSAGE(runner.result(0) == first, isa + ", " + std::to_string(threads) + " threads");
  }
}

// Huge scores and values neither overflow nor turn a row into NaN.
void check_extremes(const std::string& isa, Random& random) {
  for (const DType dtype : {DType::float16, DType::float32, DType::int8}) {
    const Shape shape{RopeStyle::half, 2, 1, 64, 64, dtype, 16, 0, false};
    std::vector<Task> tasks = {make_task(shape, 40, 40, random)};
    for (float& x : tasks[0].qkv) x *= 1000;
    tasks[0].qkv[5 * shape.qkv_width() + 3 * 64] = 1e6f;  // a value beyond the largest half
    Runner runner(shape, tasks, 1, isa, random);
    runner.step({{0, 40}});
    bool finite = true;
    for (const float x : runner.result(0)) finite = finite && std::isfinite(x);
    CHECK_MESSAGE(finite, isa + ", " + to_string(dtype));
  }
}

void check_storage() {
  const auto device = make_cpu_device({1, ""});
  const KvLayout good{2, 2, 64, 16, DType::float16};
  const auto with = [&](auto change) {
    KvLayout layout = good;
    change(layout);
    return layout;
  };
  const auto refuses = [&](const char* field, const KvLayout& layout, int32_t blocks) {
    return test::throws(ErrorKind::invalid_argument, field,
                        [&] { device->allocate_kv(layout, blocks); });
  };
  CHECK(refuses("blocks", good, -1));
  CHECK(refuses("layers", with([](auto& l) { l.layers = 0; }), 1));
  CHECK(refuses("kv_heads", with([](auto& l) { l.kv_heads = -2; }), 1));
  CHECK(refuses("head_dim", with([](auto& l) { l.head_dim = 1 << 20; }), 1));
  CHECK(refuses("block_tokens", with([](auto& l) { l.block_tokens = 24; }), 1));
  CHECK(refuses("kv_cache_dtype", with([](auto& l) { l.dtype = DType::bfloat16; }), 1));
  const KvLayout huge = with([](auto& l) { l.layers = l.kv_heads = (1 << 20) - 1; });
  CHECK(
      test::throws(ErrorKind::resource, "blocks", [&] { device->allocate_kv(huge, 2147483647); }));

  const auto kv = device->allocate_kv(good, 3);
  CHECK(kv->num_blocks() == 3);
  std::vector<char> in(good.block_bytes()), out(good.block_bytes());
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<char>(i * 31 + i / 256);
  kv->copy_from_host(2, in.data());
  kv->copy_to_host(2, out.data());
  CHECK(in == out);
  kv->copy_to_host(1, out.data());
  CHECK(std::set<char>(out.begin(), out.end()) == std::set<char>{0});
}

}  // namespace
}  // namespace slicellm

int main() {
  using namespace slicellm;
  Random random(20261121);
  check_storage();
  // Those with kernels of their own: ARM's use the portable ones, compiled for NEON.
  for (const cpu::Isa own : {cpu::Isa::portable, cpu::Isa::avx2, cpu::Isa::avx512}) {
    if (!cpu::is_supported(own)) continue;
    const std::string isa = to_string(own);
    for (const Shape& shape : shapes()) {
      check_reference(shape, isa, random);
      check_schedules(shape, isa, random);
    }
    check_context_split(isa, random);
    check_extremes(isa, random);
  }
  return test::check_result();
}
