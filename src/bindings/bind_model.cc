#include <algorithm>
#include <numeric>
#include <variant>

#include "bindings/bindings.h"
#include "slicellm/error.h"
#include "slicellm/model.h"

namespace slicellm {
namespace {

using ProgressCallback = std::function<void(uint64_t, uint64_t)>;
// Tokens per step: one number for all steps (0 = everything at once), or one a step.
using Chunks = std::variant<int64_t, std::vector<int64_t>>;

const char* to_text(NormKind kind) { return kind == NormKind::rms ? "rms" : "layer"; }

const char* to_text(GateActivation activation) {
  return activation == GateActivation::silu_gate ? "silu_gate" : "gelu_tanh";
}

const char* to_text(RopeStyle style) {
  switch (style) {
    case RopeStyle::half:
      return "half";
    case RopeStyle::interleaved:
      return "interleaved";
    case RopeStyle::glm_2d:
      return "glm_2d";
  }
  return "";
}

py::dict spec_dict(const ModelSpec& s) {
  py::dict d;
  d["family"] = s.family;
  d["layers"] = s.layers;
  d["hidden"] = s.hidden;
  d["heads"] = s.heads;
  d["kv_heads"] = s.kv_heads;
  d["head_dim"] = s.head_dim;
  d["inner"] = s.inner;
  d["vocab"] = s.vocab;
  d["max_positions"] = s.max_positions;
  d["norm"] = to_text(s.norm);
  d["norm_eps"] = s.norm_eps;
  d["activation"] = to_text(s.activation);
  d["rope_style"] = to_text(s.rope_style);
  d["rotary_dim"] = s.rotary_dim;
  d["attention_scale"] = s.attention_scale;
  d["residual_alpha"] = s.residual_alpha;
  d["norm_is_residual"] = s.norm_is_residual;
  d["prefill_divisible"] = s.prefill_divisible;
  d["sliding_window"] = s.sliding_window;
  d["window_from_layer"] = s.window_from_layer;
  d["tied_embeddings"] = s.tied_embeddings;
  d["eos_ids"] = s.eos_ids;
  d["bos_id"] = s.bos_id;
  return d;
}

std::shared_ptr<Model> load(const std::string& path, const std::string& dtype,
                            const std::string& device, int threads, const std::string& activation,
                            const std::string& kv_cache_dtype, const std::string& isa,
                            bool pack_cache, std::optional<double> gpu_mem_ratio,
                            int64_t vram_limit, const std::optional<ProgressCallback>& progress) {
  ModelOptions options;
  options.dtype_auto = dtype == "auto";
  if (!options.dtype_auto) options.dtype = parse_dtype(dtype);
  options.activation = parse_activation_type(activation);
  options.kv_dtype = kv_cache_dtype == "auto" ? DType::float16
                                              : parse_dtype(kv_cache_dtype, "kv_cache_dtype").type;
  options.pack_cache = pack_cache;
  if (progress) {
    options.progress = [&progress](uint64_t done, uint64_t total) {
      py::gil_scoped_acquire gil;
      (*progress)(done, total);
    };
  }
  CpuOptions cpu;
  cpu.threads = threads;
  cpu.isa = isa;
  if (vram_limit < 0) {
    throw Error(ErrorKind::invalid_argument, "vram_limit", std::to_string(vram_limit),
                "0 (none) or a number of bytes");
  }
  GpuOptions gpu;
  gpu.mem_ratio = gpu_mem_ratio;
  gpu.vram_limit = static_cast<size_t>(vram_limit);
  py::gil_scoped_release release;
  const std::shared_ptr<const ModelFile> file = open_model_file(path);
  return Model::load(file, make_placement(device, *file, cpu, gpu, options), options);
}

// Threads that compute. Where a part is on a CPU they are its; a GPU's, which pack weights, are as
// many as there are cores.
int threads_of(const Model& model) {
  int threads = model.device().threads();
  for (const ModelPart& part : model.placement()) {
    threads = std::min(threads, part.device->threads());
  }
  return threads;
}

// The sizes of the steps that `count` tokens are fed in.
std::vector<int32_t> step_sizes(const Chunks& chunks, int64_t count) {
  std::vector<int32_t> sizes;
  if (const int64_t* chunk = std::get_if<int64_t>(&chunks)) {
    if (*chunk < 0) {
      throw Error(ErrorKind::invalid_argument, "chunk", std::to_string(*chunk), "0 or more");
    }
    const int64_t size = *chunk == 0 ? count : *chunk;
    for (int64_t done = 0; done < count; done += size) {
      sizes.push_back(static_cast<int32_t>(std::min(size, count - done)));
    }
    return sizes;
  }
  int64_t sum = 0;
  for (int64_t size : std::get<std::vector<int64_t>>(chunks)) {
    if (size < 1 || size > count - sum) {
      throw Error(ErrorKind::invalid_argument, "chunk", std::to_string(size),
                  "step sizes of at least 1 that add up to " + std::to_string(count));
    }
    sizes.push_back(static_cast<int32_t>(size));
    sum += size;
  }
  if (sum != count) {
    throw Error(ErrorKind::invalid_argument, "chunk", std::to_string(sum) + " tokens in all",
                "step sizes that add up to " + std::to_string(count));
  }
  return sizes;
}

std::vector<int32_t> checked_ids(const std::vector<int64_t>& ids, const ModelSpec& spec) {
  if (ids.empty() || ids.size() > static_cast<size_t>(spec.max_positions)) {
    throw Error(ErrorKind::invalid_argument, "ids", std::to_string(ids.size()) + " tokens",
                "1 to " + std::to_string(spec.max_positions) + " tokens");
  }
  std::vector<int32_t> out;
  out.reserve(ids.size());
  for (int64_t id : ids) {
    if (id < 0 || id >= spec.vocab) {
      throw Error(ErrorKind::invalid_argument, "ids", std::to_string(id),
                  "token ids from 0 to " + std::to_string(spec.vocab - 1));
    }
    out.push_back(static_cast<int32_t>(id));
  }
  return out;
}

py::array_t<float> forward(Model& model, const std::vector<int64_t>& ids, const Chunks& chunk,
                           int64_t prompt_len) {
  const ModelSpec& spec = model.spec();
  const std::vector<int32_t> tokens = checked_ids(ids, spec);
  const int64_t n = static_cast<int64_t>(tokens.size());
  if (prompt_len < 0 || prompt_len > n) {
    throw Error(ErrorKind::invalid_argument, "prompt_len", std::to_string(prompt_len),
                "0 (all tokens) to " + std::to_string(n));
  }
  const std::vector<int32_t> sizes = step_sizes(chunk, n);
  py::array_t<float> logits({n, int64_t{spec.vocab}});
  std::span<float> out(logits.mutable_data(), static_cast<size_t>(logits.size()));

  py::gil_scoped_release release;
  const KvLayout layout = model.kv_layout();
  BatchSequence sequence;
  sequence.prompt_len = static_cast<int32_t>(prompt_len == 0 ? n : prompt_len);
  sequence.blocks.resize((n + layout.block_tokens - 1) / layout.block_tokens);
  std::iota(sequence.blocks.begin(), sequence.blocks.end(), 0);
  const auto kv = model.allocate_kv(static_cast<int32_t>(sequence.blocks.size()));
  const auto device_logits =
      model.device().allocate(int64_t{spec.vocab} * *std::ranges::max_element(sizes));
  for (int32_t size : sizes) {
    sequence.count = size;
    Batch batch;
    batch.tokens.assign(tokens.begin() + sequence.past, tokens.begin() + sequence.past + size);
    batch.sequences = {sequence};
    std::vector<int32_t> rows(size);
    std::iota(rows.begin(), rows.end(), 0);
    model.forward(batch, *kv, rows, *device_logits);
    const size_t floats = static_cast<size_t>(size) * static_cast<size_t>(spec.vocab);
    model.device().read(*device_logits, out.first(floats));
    out = out.subspan(floats);
    sequence.past += size;
  }
  return logits;
}

}  // namespace

void bind_model(py::module_& m) {
  py::class_<Model, std::shared_ptr<Model>>(
      m, "Model", "Packed weights of one model on its devices. Immutable; shared by engines.")
      .def_static("load", &load, py::arg("path"), py::arg("dtype") = "auto",
                  py::arg("device") = "cpu", py::arg("threads") = 0, py::arg("activation") = "auto",
                  py::arg("kv_cache_dtype") = "float16", py::arg("isa") = "",
                  py::arg("pack_cache") = false, py::arg("gpu_mem_ratio") = py::none(),
                  py::arg("vram_limit") = 0, py::arg("progress") = py::none(),
                  "Loads a .flm file, an export directory or a Hugging Face directory. `dtype` is "
                  "for Hugging Face input only. Raises IoError, FormatError, Unsupported.")
      .def_property_readonly(
          "spec", [](const Model& model) { return spec_dict(model.spec()); },
          "ModelSpec's fields by name.")
      .def_property_readonly(
          "file", [](const Model& model) -> const ModelFile& { return model.file(); },
          py::return_value_policy::reference_internal)
      .def_property_readonly("threads", &threads_of)
      .def_property_readonly("device",
                             [](const Model& model) { return describe(model.placement()); })
      .def_property_readonly("device_bytes", &Model::device_bytes,
                             "What is held of GPUs' memory; 0 on a CPU.")
      .def_property_readonly("fingerprint", &Model::fingerprint)
      .def_property_readonly(
          "pack_cache",
          [](const Model& model) {
            constexpr const char* states[] = {"off", "read", "written", "failed"};
            const PackCacheResult& result = model.pack_cache();
            return std::pair(states[static_cast<int>(result.state)], result.error);
          },
          "What became of the pack cache: off, read, written or failed, and why.")
      .def_property_readonly(
          "free_memory", [](const Model& model) { return model.device().free_memory(); },
          "Bytes of the device's memory that are free now.")
      .def_property_readonly("weight_bytes", &Model::weight_bytes)
      .def_property_readonly("kv_block_bytes",
                             [](const Model& model) { return model.kv_layout().block_bytes(); })
      .def(
          "forward", &forward, py::arg("ids"), py::arg("chunk") = 0, py::arg("prompt_len") = 0,
          "Logits [len(ids), vocab] of every token. `chunk`: tokens per step (0 = all at once), or "
          "a list with the size of each step. `prompt_len`: how many of the ids are the prompt "
          "(0 = all), which ChatGLM-6B needs. For tests and tools; waits for steps of "
          "engines on this model. Raises InvalidArgument.");
  m.def(
      "model_spec", [](const ModelFile& file) { return spec_dict(make_model_spec(file)); },
      py::arg("file"), "What `Model.spec` would be, without loading weights.");
}

}  // namespace slicellm
