// Times attention beside the machine's roofline: decode of a batch at a long context and prefill of
// one prompt, with the head shapes of models and both types of KV. Each launch works on another of
// several layers, whose KV together is more than four times the L2 cache, so that it comes from
// memory. Prints one JSON object; some rows of each result are checked against float64, and a fault
// makes the exit status 1.
#include "cuda/attention.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "benchmark/cuda/measure.h"
#include "slicellm/error.h"

namespace slicellm::cuda {
namespace {

constexpr const char* kHelp =
    "cuda_attention_benchmark [--batch N] [--context TOKENS] [--prefill TOKENS]\n";
constexpr double kSeconds = 20e-3;  // of each measurement
constexpr int kRepeats = 5;
constexpr int kMostLayers = 512;     // of a toy's KV, which is small beside the L2 cache
constexpr int kPatterns = 16;        // different KV blocks; all others repeat them
constexpr double kTolerance = 1e-3;  // of the checked results' norm

struct Options {
  int batch = 8, context = 4096, prefill = 2048;
};

struct Heads {
  const char* model;
  int32_t heads, kv_heads, head_dim;
};
constexpr Heads kModels[] = {{"Llama-3-8B", 32, 8, 128}, {"ChatGLM2-6B", 32, 2, 128}};

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "-h" || flag == "--help") {
      std::fputs(kHelp, stdout);
      std::exit(0);
    }
    int* const value = flag == "--batch"     ? &options.batch
                       : flag == "--context" ? &options.context
                       : flag == "--prefill" ? &options.prefill
                                             : nullptr;
    if (value == nullptr) throw Error(ErrorKind::invalid_argument, flag, "an unknown flag", kHelp);
    const std::string text = i + 1 < argc ? argv[++i] : "";
    char* end = nullptr;
    const long number = std::strtol(text.c_str(), &end, 10);
    if (text.empty() || *end != '\0' || number < 1 || number > 1 << 20) {
      throw Error(ErrorKind::invalid_argument, flag, '"' + text + '"', "a number 1..1048576");
    }
    *value = static_cast<int>(number);
  }
  return options;
}

// `sequences` tasks with `past` tokens in KV, of which `count` more come in a step. The rotary
// table turns by nothing: keys and queries stay as they are.
class Case {
 public:
  Case(const Meter& meter, const Heads& heads, DType kv_dtype, int sequences, int past, int count)
      : meter_(meter), heads_(heads), sequences_(sequences), past_(past), count_(count) {
    layout_.kv_heads = heads.kv_heads;
    layout_.head_dim = heads.head_dim;
    layout_.dtype = kv_dtype;
    const double layers = 4 * static_cast<double>(meter.device().l2_bytes) / kv_bytes() + 2;
    layout_.layers = static_cast<int32_t>(std::min<double>(layers, kMostLayers));
    plan_batch();
    fill_kv();
    fill_qkv();
    RopeTable table;
    table.rotary_dim = heads.head_dim;
    table.positions = past + count;
    table.cos.assign(static_cast<size_t>(table.positions) * heads.head_dim / 2, 1);
    table.sin.assign(table.cos.size(), 0);
    rope_ = std::make_unique<CudaRope>(meter.stream(), meter.memory(), table);
    make_run();
  }

  double kv_bytes() const {  // read in one launch
    return 2.0 * sequences_ * (past_ + count_) * heads_.kv_heads *
           static_cast<double>(layout_.token_bytes());
  }
  double bytes() const {
    const double rows = static_cast<double>(sequences_) * count_ * heads_.heads * heads_.head_dim;
    return kv_bytes() + rows * (sizeof(__half) + sizeof(float));
  }
  double operations() const {
    const double pairs = (past_ + 0.5 * (count_ + 1)) * count_ * sequences_;
    return 4.0 * pairs * heads_.heads * heads_.head_dim;
  }
  int layers() const { return layout_.layers; }

  // Seconds of the attention kernel, and with the kernel before it that rotates and appends.
  struct Times {
    double attend, both;
  };
  Times time() {
    for (int layer = 0; layer < layout_.layers; ++layer) {  // appends to all
      run_.layer = layer;
      rope_append(meter_.stream(), plan_, run_);
    }
    SLICELLM_CUDA_CHECK(cudaMemsetAsync(out_.get(), 0xff, out_.bytes(), meter_.stream()));  // NaN
    const auto next_layer = [&] { run_.layer = (run_.layer + 1) % layout_.layers; };
    const auto both = [&](int) {
      next_layer();
      rope_append(meter_.stream(), plan_, run_);
      attend(meter_.stream(), plan_, run_);
    };
    const auto alone = [&](int) {
      next_layer();
      attend(meter_.stream(), plan_, run_);
    };
    const int launches = Meter::launches_for(meter_.time(1, 1, both), kSeconds, 1);
    Times times;
    times.both = meter_.time(launches, kRepeats, both);
    times.attend = meter_.time(launches, kRepeats, alone);
    return times;
  }

  // Relative error of what the last launch left, over some tokens and heads.
  double error() const {
    const int64_t width = int64_t{heads_.heads} * heads_.head_dim;
    std::vector<float> out(static_cast<size_t>(sequences_) * count_ * width);
    SLICELLM_CUDA_CHECK(
        cudaMemcpy(out.data(), out_.get(), out.size() * sizeof(float), cudaMemcpyDeviceToHost));
    double error = 0, norm = 0;
    for (const float x : out) error += std::isfinite(x) ? 0 : INFINITY;  // not written
    for (int i = 0; i < 6; ++i) {
      const int sequence = (sequences_ - 1) * i / 5, token = (count_ - 1) * (5 - i) / 5;
      const int head = (heads_.heads - 1) * (i * 2 % 6) / 5;
      const std::vector<double> expected = reference(sequence, token, head);
      const size_t row = static_cast<size_t>(sequence) * count_ + token;
      for (int d = 0; d < heads_.head_dim; ++d) {
        const double off = out[row * width + int64_t{head} * heads_.head_dim + d] - expected[d];
        error += off * off;
        norm += expected[d] * expected[d];
      }
    }
    return std::sqrt(error / norm);
  }

 private:
  int blocks_each() const { return (past_ + count_ + kKvBlockTokens - 1) / kKvBlockTokens; }
  int64_t qkv_width() const {
    return int64_t{heads_.heads + 2 * heads_.kv_heads} * heads_.head_dim;
  }
  // Sequences' blocks lie in turns, as those of tasks that grow together do.
  int block_of(int sequence, int i) const { return i * sequences_ + sequence; }
  const std::vector<std::byte>& pattern_of(int block) const { return patterns_[block % kPatterns]; }

  void plan_batch() {
    Batch batch;
    for (int s = 0; s < sequences_; ++s) {
      BatchSequence sequence;
      sequence.begin = s * count_;
      sequence.count = count_;
      sequence.past = past_;
      sequence.prompt_len = past_ + count_;
      for (int i = 0; i < blocks_each(); ++i) sequence.blocks.push_back(block_of(s, i));
      batch.sequences.push_back(std::move(sequence));
    }
    batch.tokens.resize(static_cast<size_t>(sequences_) * count_);
    AttentionShape shape;
    shape.heads = heads_.heads;
    shape.kv_heads = heads_.kv_heads;
    shape.head_dim = heads_.head_dim;
    plan_ = AttentionPlan(batch, shape, meter_.device().multiprocessors);
  }

  void fill_kv() {
    const int blocks = blocks_each() * sequences_;
    kv_ = std::make_unique<CudaKvStorage>(layout_, blocks, meter_.stream(), meter_.memory());
    const size_t codes = static_cast<size_t>(kKvBlockTokens) * layout_.head_dim;
    const size_t matrix = kKvBlockTokens * layout_.token_bytes();
    std::normal_distribution<float> normal;
    patterns_.resize(kPatterns, std::vector<std::byte>(layout_.block_bytes()));
    for (std::vector<std::byte>& pattern : patterns_) {
      for (size_t at = 0; at < pattern.size(); at += matrix) {
        if (layout_.dtype == DType::int8) {
          for (size_t i = 0; i < codes; ++i) {
            pattern[at + i] = static_cast<std::byte>(1 + random_() % 255);
          }
        }
        const size_t from = layout_.dtype == DType::int8 ? codes : 0;
        const float scale = layout_.dtype == DType::int8 ? 0.015f : 1;
        for (size_t i = from; i < matrix; i += sizeof(uint16_t)) {
          const float x = scale * (layout_.dtype == DType::int8 ? 1 + std::abs(normal(random_)) / 4
                                                                : normal(random_));
          const uint16_t bits = float_to_half(x);
          std::memcpy(&pattern[at + i], &bits, sizeof(bits));
        }
      }
    }
    for (int b = 0; b < blocks; ++b) kv_->copy_from_host(b, pattern_of(b).data());
  }

  void fill_qkv() {
    std::normal_distribution<float> normal;
    qkv_.resize(static_cast<size_t>(sequences_) * count_ * qkv_width());
    for (float& x : qkv_) x = half_to_float(float_to_half(normal(random_)));
    device_qkv_ = upload(qkv_.data(), qkv_.size() * sizeof(float));
    out_ = DeviceBuffer(meter_.memory(),
                        sizeof(float) * sequences_ * count_ * heads_.heads * heads_.head_dim,
                        "output");
  }

  void make_run() {
    image_ = upload(plan_.image().data(), plan_.image().size_bytes());
    queries_ = DeviceBuffer(meter_.memory(), plan_.query_bytes(), "workspace");
    partials_ = DeviceBuffer(meter_.memory(), plan_.partial_bytes(), "workspace");
    counters_ = DeviceBuffer(meter_.memory(), plan_.counter_bytes(), "workspace");
    SLICELLM_CUDA_CHECK(cudaMemsetAsync(counters_.get(), 0, counters_.bytes(), meter_.stream()));
    run_.image = image_.get<int32_t>();
    run_.qkv = device_qkv_.get<float>();
    run_.out = out_.get<float>();
    run_.kv = kv_.get();
    run_.scale = static_cast<float>(1 / std::sqrt(heads_.head_dim));
    run_.rope = rope_.get();
    run_.queries = queries_.get<__half>();
    run_.partials = partials_.get();
    run_.counters = counters_.get<int32_t>();
  }

  DeviceBuffer upload(const void* data, size_t bytes) const {
    DeviceBuffer buffer(meter_.memory(), bytes, "benchmark input");
    meter_.stream().copy(buffer.get(), data, bytes, cudaMemcpyHostToDevice);
    meter_.stream().synchronize();
    return buffer;
  }

  // K (0) or V (1) of a position, as the cache should hold it in the layer of the last launch.
  std::vector<double> stored(int sequence, int position, int kv_head, int kind) const {
    const int dim = heads_.head_dim;
    std::vector<double> values(dim);
    if (position >= past_) {
      const size_t token = static_cast<size_t>(sequence) * count_ + position - past_;
      const float* x = &qkv_[token * qkv_width() +
                             int64_t{heads_.heads + kind * heads_.kv_heads + kv_head} * dim];
      float largest = 0;
      for (int d = 0; d < dim; ++d) largest = std::max(largest, std::abs(x[d]));
      const double scale = half_to_float(float_to_half(largest / 127));
      for (int d = 0; d < dim; ++d) {
        values[d] = layout_.dtype == DType::int8
                        ? std::clamp(std::nearbyint(x[d] / scale), -127.0, 127.0) * scale
                        : x[d];
      }
      return values;
    }
    const int row = position % kKvBlockTokens;
    const size_t matrix = kKvBlockTokens * layout_.token_bytes();
    const auto& pattern = pattern_of(block_of(sequence, position / kKvBlockTokens));
    const std::byte* at =
        &pattern[((run_.layer * size_t{1} * heads_.kv_heads + kv_head) * 2 + kind) * matrix];
    const auto half_at = [](const std::byte* from) {
      uint16_t bits;
      std::memcpy(&bits, from, sizeof(bits));
      return static_cast<double>(half_to_float(bits));
    };
    for (int d = 0; d < dim; ++d) {
      const int i = row * dim + d;
      values[d] = layout_.dtype == DType::int8
                      ? (static_cast<int>(at[i]) - 128) * half_at(at + 16 * dim + 2 * row)
                      : half_at(at + 2 * i);
    }
    return values;
  }

  std::vector<double> reference(int sequence, int token, int head) const {
    const int kv_head = head / (heads_.heads / heads_.kv_heads), dim = heads_.head_dim;
    const float* query =
        &qkv_[(static_cast<size_t>(sequence) * count_ + token) * qkv_width() + int64_t{head} * dim];
    std::vector<double> scores;
    for (int position = 0; position <= past_ + token; ++position) {
      const std::vector<double> key = stored(sequence, position, kv_head, 0);
      double dot = 0;
      for (int d = 0; d < dim; ++d) dot += query[d] * key[d];
      scores.push_back(dot / std::sqrt(dim));
    }
    const double top = *std::max_element(scores.begin(), scores.end());
    std::vector<double> out(dim);
    double sum = 0;
    for (int position = 0; position <= past_ + token; ++position) {
      const std::vector<double> value = stored(sequence, position, kv_head, 1);
      const double weight = std::exp(scores[position] - top);
      sum += weight;
      for (int d = 0; d < dim; ++d) out[d] += weight * value[d];
    }
    for (double& x : out) x /= sum;
    return out;
  }

  const Meter& meter_;
  const Heads heads_;
  const int sequences_, past_, count_;
  KvLayout layout_;
  AttentionPlan plan_;
  AttentionRun run_;
  std::mt19937 random_{std::random_device()()};
  std::vector<std::vector<std::byte>> patterns_;
  std::vector<float> qkv_;
  std::unique_ptr<CudaKvStorage> kv_;
  std::unique_ptr<CudaRope> rope_;
  DeviceBuffer device_qkv_{meter_.memory()}, out_{meter_.memory()}, image_{meter_.memory()};
  DeviceBuffer queries_{meter_.memory()}, partials_{meter_.memory()}, counters_{meter_.memory()};
};

// Returns whether the result was right.
bool run_case(const Meter& meter, const Heads& heads, DType kv_dtype, bool prefill,
              const Options& options, bool first) {
  const int sequences = prefill ? 1 : options.batch;
  const int past = prefill ? 0 : options.context - 1, count = prefill ? options.prefill : 1;
  Case attention(meter, heads, kv_dtype, sequences, past, count);
  const Case::Times times = attention.time();
  const double error = attention.error();
  const bool ok = error <= kTolerance;
  const double roofline = meter.roofline(attention.bytes(), attention.operations());
  const double copy_share = attention.kv_bytes() / meter.copy_rate() / times.attend;
  std::printf(
      "%s  {\"model\": \"%s\", \"kv\": \"%s\", \"kind\": \"%s\", \"batch\": %d, \"context\": %d,\n"
      "   \"layers\": %d, \"kv_bytes\": %.0f, \"bytes\": %.0f, \"operations\": %.0f,\n"
      "   \"seconds\": %.4g, \"with_append_seconds\": %.4g, \"roofline_seconds\": %.4g,\n"
      "   \"share_of_roofline\": %.4f, \"kv_share_of_copy_rate\": %.4f, \"right\": %s, "
      "\"error\": %.3g}",
      first ? "" : ",\n", heads.model, to_string(kv_dtype).c_str(), prefill ? "prefill" : "decode",
      sequences, past + count, attention.layers(), attention.kv_bytes(), attention.bytes(),
      attention.operations(), times.attend, times.both, roofline, roofline / times.attend,
      copy_share, ok ? "true" : "false", std::isfinite(error) ? error : -1);
  std::fprintf(stderr, "%-12s %-8s %-8s %9.1f us  %5.1f %% of roofline, with append %9.1f us%s\n",
               heads.model, to_string(kv_dtype).c_str(), prefill ? "prefill" : "decode",
               times.attend * 1e6, 100 * roofline / times.attend, times.both * 1e6,
               ok ? "" : "  WRONG");
  return ok;
}

int run_all(const Options& options) {
  const Meter meter;
  std::printf(
      "{\"device\": \"%s\", \"copy_bytes_per_second\": %.4g, \"matrix_operations_per_second\": "
      "%.4g,\n \"l2_bytes\": %zu, \"results\": [\n",
      meter.device().name.c_str(), meter.copy_rate(), meter.matrix_rate(), meter.device().l2_bytes);
  bool right = true, first = true;
  for (const bool prefill : {false, true}) {
    for (const Heads& heads : kModels) {
      for (const DType kv_dtype : {DType::float16, DType::int8}) {
        right = run_case(meter, heads, kv_dtype, prefill, options, first) && right;
        first = false;
      }
    }
  }
  std::printf("\n]}\n");
  return right ? 0 : 1;
}

}  // namespace
}  // namespace slicellm::cuda

int main(int argc, char** argv) {
  try {
    return slicellm::cuda::run_all(slicellm::cuda::parse(argc, argv));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "cuda_attention_benchmark: %s\n", error.what());
    return 1;
  }
}
