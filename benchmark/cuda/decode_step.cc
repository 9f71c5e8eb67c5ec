// Times whole decode steps of models with random int4 weights (groups of 128) through the CUDA
// executor, beside the time in which the GPU could copy the bytes that a step must read; then while
// KV of others is swapped to the host, and back. Prints one JSON object.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "benchmark/cuda/measure.h"
#include "slicellm/error.h"
#include "slicellm/executor.h"
#include "slicellm/model.h"

namespace slicellm {
namespace {

constexpr const char* kHelp =
    "cuda_decode_benchmark [--models llama3-8b,chatglm2-6b,tiny] [--batches 1,16,64]\n"
    "                      [--context 512] [--steps 20] [--swap-mib 1024]\n";
constexpr int64_t kGroup = 128;
constexpr double kMemoryShare = 0.8;  // of what the weights leave free, for KV

struct Shape {
  std::string name;
  bool glm;  // weight names and rotary style of ChatGLM2, else of Llama
  int64_t layers, hidden, heads, kv_heads, inner, vocab;
};

const std::vector<Shape> kShapes = {
    {"llama3-8b", false, 32, 4096, 32, 8, 14336, 128256},
    {"chatglm2-6b", true, 28, 4096, 32, 2, 13696, 65024},
    {"tiny", false, 2, 256, 4, 2, 384, 500},
};

// A model file with random codes, all layers from the same bytes: each is packed by itself.
class RandomFile final : public ModelFile {
 public:
  explicit RandomFile(const Shape& shape) {
    const int64_t head = shape.hidden / shape.heads, kv = shape.kv_heads * head;
    const int64_t q = shape.hidden;
    config_.values = {{"model_type", shape.glm ? "chatglm" : "llama"},
                      {"num_attention_heads", std::to_string(shape.heads)},
                      {"num_key_value_heads", std::to_string(shape.kv_heads)},
                      {"multi_query_group_num", std::to_string(shape.kv_heads)},
                      {"max_position_embeddings", "8192"},
                      {"seq_length", "8192"}};
    const std::string root = shape.glm ? "transformer.encoder." : "model.";
    for (int64_t i = 0; i < shape.layers; ++i) {
      const std::string at = root + "layers." + std::to_string(i) + ".";
      add(at + "input_layernorm.weight", {q});
      add(at + "post_attention_layernorm.weight", {q});
      if (shape.glm) {
        add(at + "self_attention.query_key_value.weight", {q + 2 * kv, q});
        add(at + "self_attention.dense.weight", {q, q});
        add(at + "mlp.dense_h_to_4h.weight", {2 * shape.inner, q});
        add(at + "mlp.dense_4h_to_h.weight", {q, shape.inner});
      } else {
        add(at + "self_attn.q_proj.weight", {q, q});
        add(at + "self_attn.k_proj.weight", {kv, q});
        add(at + "self_attn.v_proj.weight", {kv, q});
        add(at + "self_attn.o_proj.weight", {q, q});
        add(at + "mlp.gate_proj.weight", {shape.inner, q});
        add(at + "mlp.up_proj.weight", {shape.inner, q});
        add(at + "mlp.down_proj.weight", {q, shape.inner});
      }
    }
    add(root + (shape.glm ? "final_layernorm.weight" : "norm.weight"), {q});
    add(shape.glm ? "transformer.embedding.word_embeddings.weight" : "model.embed_tokens.weight",
        {shape.vocab, q});
    add(shape.glm ? "transformer.output_layer.weight" : "lm_head.weight", {shape.vocab, q});
    codes_->resize(static_cast<size_t>(largest_ + 1) / 2);
    std::mt19937_64 random(1);
    for (uint8_t& byte : *codes_) byte = static_cast<uint8_t>(random());
    ones_->assign(static_cast<size_t>(q), 1.0f);
  }

  ModelFileKind kind() const override { return ModelFileKind::flm; }
  const std::string& path() const override { return path_; }
  int version() const override { return 2; }
  std::string identity() const override { return "random"; }
  const Config& config() const override { return config_; }
  const Vocab& vocab() const override { return vocab_; }
  std::vector<std::string> names() const override { return names_; }
  bool contains(std::string_view name) const override {
    return shapes_.count(std::string(name)) > 0;
  }
  Weight weight(std::string_view name) const override {
    Weight w;
    w.name = name;
    w.shape = shapes_.at(w.name);
    if (w.shape.size() == 1) {
      w.data = ones_->data();
      w.data_bytes = ones_->size() * sizeof(float);
      w.owner = ones_;
      return w;
    }
    w.dtype = DType::int4;
    w.group_size = kGroup;
    w.data = codes_->data();
    w.data_bytes = static_cast<size_t>(w.rows() * w.cols() + 1) / 2;
    w.owner = codes_;
    // Codes 0..15 about 8 with a standard deviation of 4.6: each output keeps its input's size.
    const float scale =
        half_to_float(float_to_half(1.0f / (4.6f * std::sqrt(static_cast<float>(w.cols())))));
    w.scale.assign(static_cast<size_t>(w.rows() * w.groups()), scale);
    w.minimum.assign(w.scale.size(), -8 * scale);
    return w;
  }

 private:
  void add(const std::string& name, std::vector<int64_t> shape) {
    if (shape.size() == 2) largest_ = std::max(largest_, shape[0] * shape[1]);
    names_.push_back(name);
    shapes_.emplace(name, std::move(shape));
  }

  Config config_;
  Vocab vocab_;
  std::string path_ = "random";
  std::vector<std::string> names_;
  std::map<std::string, std::vector<int64_t>> shapes_;
  int64_t largest_ = 0;
  std::shared_ptr<std::vector<uint8_t>> codes_ = std::make_shared<std::vector<uint8_t>>();
  std::shared_ptr<std::vector<float>> ones_ = std::make_shared<std::vector<float>>();
};

struct Options {
  std::vector<std::string> models = {"llama3-8b", "chatglm2-6b"};
  std::vector<int32_t> batches = {1, 16, 64};
  int32_t context = 512, steps = 20, swap_mib = 1024;
};

// Rows with `past` tokens behind them, each with a block of its own to write to and the others
// distinct as far as the pool reaches.
Batch decode_batch(int32_t rows, int32_t most_rows, int32_t past, int32_t blocks, int32_t vocab) {
  Batch batch;
  int32_t next = 0;
  for (int32_t row = 0; row < rows; ++row) {
    BatchSequence s;
    s.task = row;
    s.begin = row;
    s.count = 1;
    s.past = past;
    s.prompt_len = past;
    s.sample = true;
    for (int32_t block = 0; block < past / 16; ++block) {
      s.blocks.push_back(most_rows + next++ % (blocks - most_rows));
    }
    s.blocks.push_back(row);
    batch.sequences.push_back(std::move(s));
    batch.tokens.push_back((row * 7919 + 17) % vocab);
  }
  return batch;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

double seconds_of(Executor& executor, const Batch& batch) {
  return executor.wait(executor.submit(batch)).duration;
}

// Copies of the device blocks from `first` on to host blocks, or back.
Batch swap_batch(int32_t first, int32_t count, bool to_host) {
  Batch batch;
  for (int32_t i = 0; i < count; ++i) batch.copies.push_back({to_host, first + i, i});
  return batch;
}

// The mean of the steps that begin while the copies of `swap`, which alone take `swap_seconds`, run
// beside them.
double seconds_beside(Executor& executor, const Batch& batch, const Batch& swap,
                      double swap_seconds) {
  Batch first = batch;
  first.copies = swap.copies;
  double sum = seconds_of(executor, first);
  int steps = 1;
  for (; sum < swap_seconds; ++steps) sum += seconds_of(executor, batch);
  Batch rest;  // the last copy again, which ends after the others
  rest.copies.push_back(swap.copies.back());
  seconds_of(executor, rest);
  return sum / steps;
}

void run_model(const Shape& shape, const Options& options, const cuda::Meter& meter, bool first) {
  using Clock = std::chrono::steady_clock;
  const auto load_start = Clock::now();
  const auto model = Model::load(std::make_shared<RandomFile>(shape), make_cuda_device(0), {});
  const std::chrono::duration<double> load_time = Clock::now() - load_start;
  const size_t block_bytes = model->kv_layout().block_bytes();
  const int32_t most = *std::max_element(options.batches.begin(), options.batches.end());
  const int32_t past = options.context / 16 * 16;
  const double fits = static_cast<double>(model->device().free_memory()) * kMemoryShare /
                      static_cast<double>(block_bytes);
  const auto swapped = static_cast<int32_t>(std::clamp<double>(
      std::ldexp(options.swap_mib, 20) / static_cast<double>(block_bytes), 1, fits / 4));
  const auto blocks =
      static_cast<int32_t>(std::min<double>(fits - swapped, most + double{1} * most * (past / 16)));
  const auto executor = make_executor(model, blocks + swapped, swapped);
  for (int32_t row = 0; row < most; ++row) {
    ExecutorTask task;
    task.id = row;
    executor->add_task(task);
  }
  const Batch out = swap_batch(blocks, swapped, true), in = swap_batch(blocks, swapped, false);
  seconds_of(*executor, out);  // takes host memory
  const double out_seconds = seconds_of(*executor, out), in_seconds = seconds_of(*executor, in);
  const double swap_bytes = static_cast<double>(block_bytes) * swapped;
  for (const int32_t rows : options.batches) {
    const Batch batch = decode_batch(rows, most, past, blocks, model->spec().vocab);
    std::vector<double> device_seconds, wall_seconds;
    int32_t graph_steps = 0;
    for (int32_t step = -3; step < options.steps; ++step) {
      const auto start = Clock::now();
      const StepResult result = executor->wait(executor->submit(batch));
      const std::chrono::duration<double> wall = Clock::now() - start;
      if (step < 0) continue;  // warm-up
      graph_steps += result.graph;
      device_seconds.push_back(result.duration);
      wall_seconds.push_back(wall.count());
    }
    const double beside_out = seconds_beside(*executor, batch, out, out_seconds);
    const double beside_in = seconds_beside(*executor, batch, in, in_seconds);
    const double kv_bytes = static_cast<double>(block_bytes) / 16 * past * rows;
    const double bytes = static_cast<double>(model->weight_bytes()) + kv_bytes;
    const double seconds = median(device_seconds), roofline = bytes / meter.copy_rate();
    std::printf(
        "%s  {\"model\": \"%s\", \"batch\": %d, \"context\": %d, \"weight_bytes\": %zu,\n"
        "   \"kv_bytes\": %.0f, \"load_seconds\": %.3g, \"seconds\": %.4g, \"wall_seconds\": "
        "%.4g,\n"
        "   \"graph_steps\": %d, \"roofline_seconds\": %.4g, \"share_of_roofline\": %.4f,\n"
        "   \"swap_bytes\": %.0f, \"swap_out_seconds\": %.4g, \"swap_in_seconds\": %.4g,\n"
        "   \"seconds_beside_swap_out\": %.4g, \"seconds_beside_swap_in\": %.4g}",
        first ? "" : ",\n", shape.name.c_str(), rows, past, model->weight_bytes(), kv_bytes,
        load_time.count(), seconds, median(wall_seconds), graph_steps, roofline, roofline / seconds,
        swap_bytes, out_seconds, in_seconds, beside_out, beside_in);
    std::fprintf(
        stderr,
        "%-12s batch %-3d %9.3f ms a step  %5.1f %% of roofline; beside a swap of %.0f MiB "
        "out (%.1f ms alone) %.3f ms, in (%.1f ms) %.3f ms\n",
        shape.name.c_str(), rows, seconds * 1e3, 100 * roofline / seconds, swap_bytes / (1 << 20),
        out_seconds * 1e3, beside_out * 1e3, in_seconds * 1e3, beside_in * 1e3);
    first = false;
  }
}

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  size_t at = 0;
  for (size_t comma; (comma = text.find(',', at)) != std::string::npos; at = comma + 1) {
    parts.push_back(text.substr(at, comma - at));
  }
  parts.push_back(text.substr(at));
  return parts;
}

int32_t number(const std::string& flag, const std::string& text) {
  char* end = nullptr;
  const long value = std::strtol(text.c_str(), &end, 10);
  if (text.empty() || *end != '\0' || value < 1 || value > 8000) {
    throw Error(ErrorKind::invalid_argument, flag, text, "a number from 1 to 8000");
  }
  return static_cast<int32_t>(value);
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; i += 2) {
    const std::string flag = argv[i], value = i + 1 < argc ? argv[i + 1] : "";
    if (flag == "--models") {
      options.models = split(value);
    } else if (flag == "--batches") {
      options.batches.clear();
      for (const std::string& part : split(value)) options.batches.push_back(number(flag, part));
    } else if (flag == "--context") {
      options.context = number(flag, value);
    } else if (flag == "--steps") {
      options.steps = number(flag, value);
    } else if (flag == "--swap-mib") {
      options.swap_mib = number(flag, value);
    } else {
      throw Error(ErrorKind::invalid_argument, "flag", flag, std::string("those of:\n") + kHelp);
    }
  }
  return options;
}

int run(const Options& options) {
  std::vector<const Shape*> shapes;
  for (const std::string& name : options.models) {
    const auto at = std::ranges::find(kShapes, name, &Shape::name);
    if (at == kShapes.end()) {
      throw Error(ErrorKind::invalid_argument, "--models", name, "llama3-8b, chatglm2-6b or tiny");
    }
    shapes.push_back(&*at);
  }
  const cuda::Meter meter;
  std::printf("{\"device\": \"%s\", \"copy_bytes_per_second\": %.4g, \"results\": [\n",
              meter.device().name.c_str(), meter.copy_rate());
  for (const Shape* shape : shapes) run_model(*shape, options, meter, shape == shapes.front());
  std::printf("\n]}\n");
  return 0;
}

}  // namespace
}  // namespace slicellm

int main(int argc, char** argv) {
  try {
    return slicellm::run(slicellm::parse(argc, argv));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "cuda_decode_benchmark: %s\n", error.what());
    return 1;
  }
}
