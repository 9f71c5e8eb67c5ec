// The forward pass over mixed batches: every task's logits are the bits of its run alone, whatever
// shares its steps, and a bad batch is refused before anything is computed.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "slicellm/error.h"
#include "slicellm/model.h"

namespace slicellm {
namespace {

using Random = std::mt19937;
using test::throws;

// A model in memory: random float32 tensors under a family's names.
class RandomFile final : public ModelFile {
 public:
  explicit RandomFile(std::map<std::string, std::string> config) {
    config_.values = std::move(config);
  }

  void add(const std::string& name, std::vector<int64_t> shape, float deviation, float mean = 0) {
    int64_t size = 1;
    for (int64_t n : shape) size *= n;
    auto values = std::make_shared<std::vector<float>>(size);
    std::normal_distribution<float> normal(mean, deviation);
    for (float& x : *values) x = normal(random_);
    Weight w;
    w.name = name;
    w.shape = std::move(shape);
    w.data = values->data();
    w.data_bytes = values->size() * sizeof(float);
    w.owner = std::move(values);
    names_.push_back(name);
    weights_.emplace(name, std::move(w));
  }
  void linear(const std::string& name, int64_t rows, int64_t cols, bool bias) {
    add(name + ".weight", {rows, cols}, 1 / std::sqrt(static_cast<float>(cols)));
    if (bias) add(name + ".bias", {rows}, 0.3f);
  }
  void norm(const std::string& name, int64_t width, bool bias) {
    add(name + ".weight", {width}, 0.2f, 1);
    if (bias) add(name + ".bias", {width}, 0.2f);
  }

  ModelFileKind kind() const override { return ModelFileKind::hf_dir; }
  const std::string& path() const override { return path_; }
  int version() const override { return 2; }
  std::string identity() const override { return "random"; }
  const Config& config() const override { return config_; }
  const Vocab& vocab() const override { return vocab_; }
  std::vector<std::string> names() const override { return names_; }
  bool contains(std::string_view name) const override {
    return weights_.count(std::string(name)) > 0;
  }
  Weight weight(std::string_view name) const override {
    const auto at = weights_.find(std::string(name));
    if (at == weights_.end()) throw Error(ErrorKind::format, "weight", "none", std::string(name));
    return at->second;
  }

 private:
  Random random_{7};
  Config config_;
  Vocab vocab_;
  std::string path_;
  std::vector<std::string> names_;
  std::map<std::string, Weight> weights_;
};

constexpr int64_t kHidden = 48, kInner = 64, kVocab = 50;

std::shared_ptr<RandomFile> llama_file(const std::string& positions) {
  auto file = std::make_shared<RandomFile>(std::map<std::string, std::string>{
      {"model_type", "mistral"},
      {"num_attention_heads", "3"},
      {"num_key_value_heads", "1"},
      {"max_position_embeddings", positions},
      {"sliding_window", "21"},
  });
  file->add("model.embed_tokens.weight", {kVocab, kHidden}, 1);
  for (int layer = 0; layer < 2; ++layer) {
    const std::string at = "model.layers." + std::to_string(layer) + ".";
    file->norm(at + "input_layernorm", kHidden, false);
    file->norm(at + "post_attention_layernorm", kHidden, false);
    file->linear(at + "self_attn.q_proj", kHidden, kHidden, true);
    file->linear(at + "self_attn.k_proj", kHidden / 3, kHidden, true);
    file->linear(at + "self_attn.v_proj", kHidden / 3, kHidden, false);
    file->linear(at + "self_attn.o_proj", kHidden, kHidden, false);
    file->linear(at + "mlp.gate_proj", kInner, kHidden, false);
    file->linear(at + "mlp.up_proj", kInner, kHidden, true);
    file->linear(at + "mlp.down_proj", kHidden, kInner, false);
  }
  file->norm("model.norm", kHidden, false);
  file->linear("lm_head", kVocab, kHidden, false);
  return file;
}

std::shared_ptr<RandomFile> chatglm1_file() {
  auto file = std::make_shared<RandomFile>(std::map<std::string, std::string>{
      {"model_type", "chatglm"},
      {"num_attention_heads", "3"},
      {"max_sequence_length", "128"},
  });
  file->add("transformer.word_embeddings.weight", {kVocab, kHidden}, 1);
  for (int layer = 0; layer < 2; ++layer) {
    const std::string at = "transformer.layers." + std::to_string(layer) + ".";
    file->norm(at + "input_layernorm", kHidden, true);
    file->norm(at + "post_attention_layernorm", kHidden, true);
    file->linear(at + "attention.query_key_value", 3 * kHidden, kHidden, true);
    file->linear(at + "attention.dense", kHidden, kHidden, true);
    file->linear(at + "mlp.dense_h_to_4h", kInner, kHidden, true);
    file->linear(at + "mlp.dense_4h_to_h", kHidden, kInner, true);
  }
  file->norm("transformer.final_layernorm", kHidden, true);
  file->linear("lm_head", kVocab, kHidden, false);
  return file;
}

struct Task {
  std::vector<int32_t> tokens;
  int32_t prompt_len = 0;
  int32_t done = 0;
  std::vector<int32_t> blocks;
  std::vector<float> logits;  // [tokens, vocab], as far as done
};

std::vector<Task> make_tasks(int count, Random& random) {
  std::vector<Task> tasks(count);
  for (Task& task : tasks) {
    task.prompt_len = 2 + static_cast<int32_t>(random() % 40);
    task.tokens.resize(task.prompt_len + random() % 20);
    for (int32_t& token : task.tokens) token = static_cast<int32_t>(random() % kVocab);
    task.logits.resize(task.tokens.size() * kVocab);
  }
  return tasks;
}

// The two layers of the models here in one part, or each on a device of its own.
Placement parts_of(int parts, int threads) {
  if (parts == 1) return {{make_cpu_device({threads, ""}), 2}};
  return {{make_cpu_device({threads, ""}), 1}, {make_cpu_device({1, ""}), 1}};
}

// One step with `counts[i]` tokens of task i (0 = absent), in the order of `order`.
void run_step(Model& model, KvStorage& kv, std::vector<Task>& tasks,
              const std::vector<int32_t>& counts, const std::vector<int>& order) {
  Batch batch;
  std::vector<float*> targets;
  for (int i : order) {
    Task& task = tasks[i];
    if (counts[i] == 0) continue;
    BatchSequence sequence;
    sequence.task = i;
    sequence.begin = static_cast<int32_t>(batch.tokens.size());
    sequence.count = counts[i];
    sequence.past = task.done;
    sequence.prompt_len = task.prompt_len;
    sequence.blocks = task.blocks;
    for (int32_t k = 0; k < counts[i]; ++k, ++task.done) {
      batch.tokens.push_back(task.tokens[task.done]);
      targets.push_back(&task.logits[static_cast<size_t>(task.done) * kVocab]);
    }
    batch.sequences.push_back(std::move(sequence));
  }
  if (batch.tokens.empty()) return;
  std::vector<int32_t> rows(batch.tokens.size());
  std::iota(rows.begin(), rows.end(), 0);
  std::vector<float> logits(rows.size() * kVocab);
  const auto device_logits = model.device().allocate(static_cast<int64_t>(logits.size()));
  model.forward(batch, kv, rows, *device_logits);
  model.device().read(*device_logits, logits);
  for (size_t i = 0; i < rows.size(); ++i) {
    std::copy_n(&logits[i * kVocab], kVocab, targets[i]);
  }
}

void test_random_schedules(const std::shared_ptr<RandomFile>& file, DTypeSpec dtype) {
  ModelOptions options;
  options.dtype = dtype;
  options.dtype_auto = false;
  Random random(11);
  std::vector<Task> alone = make_tasks(6, random);
  {
    const auto model = Model::load(file, make_cpu_device({1, ""}), options);
    for (Task& task : alone) {
      task.blocks = {0, 1, 2, 3};
      std::vector<Task> one = {task};
      run_step(*model, *model->device().allocate_kv(model->kv_layout(), 4), one,
               {static_cast<int32_t>(task.tokens.size())}, {0});
      task.logits = one[0].logits;
    }
  }
  for (int round = 0; round < 6; ++round) {
    const auto model = Model::load(file, parts_of(1 + round / 2 % 2, 1 + round % 3), options);
    std::vector<Task> tasks = alone;
    std::vector<int32_t> blocks(4 * tasks.size());
    std::iota(blocks.begin(), blocks.end(), 0);
    std::ranges::shuffle(blocks, random);
    const auto kv = model->allocate_kv(static_cast<int32_t>(blocks.size()));
    for (size_t i = 0; i < tasks.size(); ++i) {
      tasks[i].blocks.assign(blocks.begin() + 4 * i, blocks.begin() + 4 * (i + 1));
      tasks[i].logits.assign(tasks[i].logits.size(), 0);
    }
    std::vector<int> order(tasks.size());
    std::iota(order.begin(), order.end(), 0);
    for (bool left = true; left;) {
      left = false;
      std::ranges::shuffle(order, random);
      std::vector<int32_t> counts(tasks.size());
      for (size_t i = 0; i < tasks.size(); ++i) {
        const Task& task = tasks[i];
        const auto rest = static_cast<int32_t>(task.tokens.size()) - task.done;
        left = left || rest > 0;
        if (rest == 0 || random() % 3 == 0) continue;
        const bool whole = !model->spec().prefill_divisible && task.done == 0;
        counts[i] = std::min<int32_t>(rest, 1 + random() % (random() % 2 ? 1 : 20));
        if (whole) counts[i] = std::max(counts[i], task.prompt_len);
      }
      run_step(*model, *kv, tasks, counts, order);
    }
    for (size_t i = 0; i < tasks.size(); ++i) {
      CHECK_MESSAGE(std::memcmp(tasks[i].logits.data(), alone[i].logits.data(),
                                alone[i].logits.size() * sizeof(float)) == 0,
                    model->spec().family + " " + to_string(dtype) + ": task " + std::to_string(i));
    }
  }
}

void test_bad_batches(const std::shared_ptr<RandomFile>& file) {
  const auto model = Model::load(file, make_cpu_device({1, ""}), {});
  const KvLayout layout = model->kv_layout();
  const auto kv = model->device().allocate_kv(layout, 4);
  Batch good;
  good.tokens = {1, 2, 3, 4, 5};
  BatchSequence first, second;
  first.count = first.prompt_len = 3;
  first.blocks = {0};
  second.begin = 3;
  second.count = second.prompt_len = 2;
  second.blocks = {2};
  good.sequences = {first, second};
  const auto logits = model->device().allocate(5 * kVocab);
  const auto fails = [&](const char* field, auto change) {
    Batch batch = good;
    std::vector<int32_t> rows = {0, 4};
    change(batch, rows);
    return throws(ErrorKind::invalid_argument, field,
                  [&] { model->forward(batch, *kv, rows, *logits); });
  };
  using Rows = std::vector<int32_t>;
  model->forward(good, *kv, Rows{0, 4}, *logits);
  model->forward(good, *kv, Rows{}, *model->device().allocate(0));
  CHECK(fails("tokens", [](Batch& b, Rows&) { b.tokens.clear(); }));
  CHECK(fails("tokens", [](Batch& b, Rows&) { b.tokens.push_back(1); }));
  CHECK(fails("tokens", [](Batch& b, Rows&) { b.sequences.clear(); }));
  CHECK(fails("token", [](Batch& b, Rows&) { b.tokens[2] = kVocab; }));
  CHECK(fails("token", [](Batch& b, Rows&) { b.tokens[2] = -1; }));
  CHECK(fails("begin", [](Batch& b, Rows&) { b.sequences[1].begin = 2; }));
  CHECK(fails("count", [](Batch& b, Rows&) { b.sequences[1].count = 0; }));
  CHECK(fails("count", [](Batch& b, Rows&) { b.sequences[1].count = 3; }));
  CHECK(fails("count", [](Batch& b, Rows&) { b.sequences[0].count = INT32_MAX; }));
  CHECK(fails("past", [](Batch& b, Rows&) { b.sequences[1].past = -1; }));
  CHECK(fails("past + count", [](Batch& b, Rows&) { b.sequences[1].past = 127; }));
  CHECK(fails("past + count", [](Batch& b, Rows&) { b.sequences[1].past = INT32_MAX; }));
  CHECK(fails("prompt_len", [](Batch& b, Rows&) { b.sequences[1].prompt_len = 0; }));
  CHECK(fails("blocks", [](Batch& b, Rows&) { b.sequences[1].blocks.clear(); }));
  CHECK(fails("block", [](Batch& b, Rows&) { b.sequences[1].blocks = {4}; }));
  CHECK(fails("block", [](Batch& b, Rows&) { b.sequences[1].blocks = {1, -1}; }));
  CHECK(fails("row", [](Batch&, Rows& r) { r = {5}; }));
  CHECK(fails("row", [](Batch&, Rows& r) { r = {0, -1}; }));
  CHECK(fails("logits", [](Batch&, Rows& r) { r = {0, 1, 2, 3, 4, 0}; }));
  if (!model->spec().prefill_divisible) {
    CHECK(fails("count", [](Batch& b, Rows&) { b.sequences[1].prompt_len = 3; }));
    CHECK(fails("count", [](Batch& b, Rows&) {
      b.sequences[1].past = 1;
      b.sequences[1].prompt_len = 3;
    }));
  }
  KvLayout other = layout;
  other.head_dim *= 2;
  const auto wrong = model->device().allocate_kv(other, 4);
  CHECK(throws(ErrorKind::invalid_argument, "kv",
               [&] { model->forward(good, *wrong, Rows{0}, *logits); }));
}

// Parts that are not the model's, and K and V of other parts.
void test_bad_parts() {
  const auto file = llama_file("128");
  const auto cpu = make_cpu_device({1, ""});
  CHECK(throws(ErrorKind::invalid_argument, "placement", [&] {
    Model::load(file, Placement{{cpu, 1}, {cpu, 2}}, {});
  }));
  CHECK(throws(ErrorKind::invalid_argument, "placement",
               [&] { Model::load(file, Placement{}, {}); }));
  BatchSequence sequence;
  sequence.count = sequence.prompt_len = 1;
  sequence.blocks = {0};
  Batch batch;
  batch.tokens = {7};
  batch.sequences = {sequence};
  for (int parts : {1, 2}) {
    const auto model = Model::load(file, parts_of(parts, 1), {});
    const auto other = Model::load(file, parts_of(3 - parts, 1), {})->allocate_kv(1);
    CHECK(throws(ErrorKind::invalid_argument, "kv",
                 [&] { model->forward(batch, *other, {}, *model->device().allocate(0)); }));
  }
}

// A context far beyond the rotary tables made at load.
void test_long_context() {
  const auto model = Model::load(llama_file("70000"), make_cpu_device({1, ""}), {});
  const auto kv = model->device().allocate_kv(model->kv_layout(), 3);
  Batch batch;
  batch.tokens = {7};
  BatchSequence sequence;
  sequence.count = 1;
  sequence.prompt_len = 10;
  sequence.blocks.assign(70000 / model->kv_layout().block_tokens, 0);  // one block, shared by all
  std::vector<float> logits(kVocab);
  const auto device_logits = model->device().allocate(kVocab);
  for (int32_t past : {100, 40000, 69999, 33000}) {
    sequence.past = past;
    batch.sequences = {sequence};
    model->forward(batch, *kv, std::vector<int32_t>{0}, *device_logits);
    model->device().read(*device_logits, logits);
    CHECK(std::ranges::all_of(logits, [](float x) { return std::isfinite(x); }));
  }
}

}  // namespace
}  // namespace slicellm

int main() {
  using namespace slicellm;
  for (const auto& file : {llama_file("128"), chatglm1_file()}) {
    test_random_schedules(file, {DType::float16, 0});
    test_random_schedules(file, {DType::int4, 32});
    test_bad_batches(file);
  }
  test_bad_parts();
  test_long_context();
  return test::check_result();
}
