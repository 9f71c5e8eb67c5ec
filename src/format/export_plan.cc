#include "format/export_plan.h"

#include <array>

#include "format/byte_reader.h"
#include "slicellm/error.h"

namespace slicellm {
namespace {

using Source = ExportTensor::Source;

// .flm files before version 2 do not name their family; those of the families here are ChatGLM's.
std::string model_type_of(const ModelFile& file) {
  return file.config().get_string("model_type", file.version() < 2 ? "chatglm" : "");
}

void check_supported(const ModelFile& file) {
  const std::string type = model_type_of(file);
  constexpr std::array<std::string_view, 4> kTypes = {"llama", "mistral", "qwen2", "chatglm"};
  bool known = false;
  for (std::string_view candidate : kTypes) known = known || type == candidate;
  if (!known) {
    throw Error(ErrorKind::unsupported, "model_type", shown(type),
                "llama, mistral, qwen2 or chatglm");
  }
  if (file.config().get_int("peft_size", 0) > 0) {
    throw Error(ErrorKind::unsupported, "peft_size", "a model with adapters",
                "a model whose adapters are merged into its weights");
  }
}

ExportTensor::Role role_of(const std::string& name, const Weight& w) {
  using Role = ExportTensor::Role;
  if (w.shape.size() != 2 || !name.ends_with(".weight")) return Role::other;
  if (name.find("embed_tokens") != std::string::npos) return Role::embedding;
  if (name.find("word_embeddings") != std::string::npos) return Role::embedding;
  return Role::linear;
}

// Prefix of `name` if it ends in `end`: "model.layers.0.self_attn." of "...q_proj.weight".
bool strip(const std::string& name, std::string_view end, std::string& prefix) {
  if (!name.ends_with(end)) return false;
  prefix = name.substr(0, name.size() - end.size());
  return true;
}

class Planner {
 public:
  Planner(const ModelFile& file, bool to_flm) : file_(file), to_flm_(to_flm) {}

  std::vector<ExportTensor> plan() {
    check_supported(file_);
    const bool merge = to_flm_ && model_type_of(file_) == "qwen2";
    for (const std::string& name : file_.names()) {
      if (merge && merge_rows(name)) continue;
      if (!to_flm_ && split_rows(name)) continue;
      add(name, {{name}});
    }
    add_tied_head();
    return std::move(tensors_);
  }

 private:
  void add(const std::string& name, std::vector<Source> sources) {
    const auto role = role_of(name, file_.weight(sources.front().name));
    tensors_.push_back({name, role, std::move(sources)});
  }

  // The first of the parts becomes the merged tensor, the others are dropped here.
  bool merge_rows(const std::string& name) {
    std::string prefix;
    for (const char* kind : {"weight", "bias"}) {
      const std::string end(kind);
      const std::string q = "q_proj." + end, k = "k_proj." + end, v = "v_proj." + end;
      if (strip(name, q, prefix)) {
        add(prefix + "mergeqkv." + end, {{prefix + q}, {prefix + k}, {prefix + v}});
        return true;
      }
      if (strip(name, k, prefix) || strip(name, v, prefix)) return file_.contains(prefix + q);
      const std::string gate = "gate_proj." + end, up = "up_proj." + end;
      if (strip(name, gate, prefix)) {
        add(prefix + "gateup_proj." + end, {{prefix + gate}, {prefix + up}});
        return true;
      }
      if (!name.ends_with("gateup_proj." + end) && strip(name, up, prefix)) {
        return file_.contains(prefix + gate);
      }
    }
    return false;
  }

  bool split_rows(const std::string& name) {
    std::string prefix;
    for (const char* kind : {"weight", "bias"}) {
      const std::string end(kind);
      if (strip(name, "mergeqkv." + end, prefix)) {
        const int64_t rows = file_.weight(name).shape[0], q = query_rows(rows, name);
        const int64_t kv = (rows - q) / 2;
        add(prefix + "q_proj." + end, {{name, 0, q}});
        add(prefix + "k_proj." + end, {{name, q, q + kv}});
        add(prefix + "v_proj." + end, {{name, q + kv, rows}});
        return true;
      }
      if (strip(name, "gateup_proj." + end, prefix)) {
        const int64_t rows = file_.weight(name).shape[0];
        if (rows % 2 != 0) throw wrong_rows(name, rows, "an even number");
        add(prefix + "gate_proj." + end, {{name, 0, rows / 2}});
        add(prefix + "up_proj." + end, {{name, rows / 2, rows}});
        return true;
      }
    }
    return false;
  }

  static Error wrong_rows(const std::string& name, int64_t rows, const std::string& expected) {
    return Error(ErrorKind::format, name + " rows", std::to_string(rows), expected);
  }

  int64_t query_rows(int64_t rows, const std::string& name) const {
    const Config& config = file_.config();
    const int64_t heads = config.require_int("num_attention_heads");
    const int64_t kv_heads = config.get_int("num_key_value_heads", heads);
    const int64_t all =
        heads > 0 && kv_heads > 0 && heads <= rows && kv_heads <= heads ? heads + 2 * kv_heads : 0;
    if (all == 0 || rows % all != 0) {
      throw wrong_rows(name, rows, "a multiple of the heads of q, k and v");
    }
    return rows / all * heads;
  }

  void add_tied_head() {
    const std::string head = "lm_head.weight", embedding = "model.embed_tokens.weight";
    if (file_.contains(head) || !file_.contains(embedding)) return;
    if (!file_.config().get_bool("tie_word_embeddings", false)) return;
    add(head, {{embedding}});
  }

  const ModelFile& file_;
  bool to_flm_;
  std::vector<ExportTensor> tensors_;
};

}  // namespace

std::vector<ExportTensor> plan_export(const ModelFile& file, bool to_flm) {
  return Planner(file, to_flm).plan();
}

Config flm_config(const ModelFile& file) {
  Config config = file.config();
  for (auto& [key, value] : config.values) {
    if (value == "true") value = "True";
    if (value == "false") value = "False";
    if (value == "null") value = "None";
  }
  // fastllm knows no "mistral"; without its window, which our llama reads too, it is a llama.
  const std::string type = model_type_of(file);
  config.values["model_type"] = type == "mistral" ? "llama" : type;
  const auto alias = [&config](const char* name, const char* newer) {
    if (!config.has(name) && config.has(newer)) config.values[name] = config.values[newer];
  };
  alias("rope_theta", "rope_parameters.rope_theta");
  alias("rope_scaling.type", "rope_scaling.rope_type");
  return config;
}

}  // namespace slicellm
