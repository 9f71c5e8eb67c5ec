#include "model/config_reader.h"
#include "model/family.h"
#include "slicellm/error.h"

namespace slicellm {
namespace {

LayerSource llama_layer(const ModelFile& file, const ModelSpec& spec, int64_t index,
                        Bias qkv_bias) {
  const std::string layer = "model.layers." + std::to_string(index) + ".";
  const std::string attention = layer + "self_attn.", mlp = layer + "mlp.";
  const int64_t q = int64_t{spec.heads} * spec.head_dim;
  const int64_t kv = int64_t{spec.kv_heads} * spec.head_dim;
  LayerSource source;
  source.attention_norm = layer + "input_layernorm";
  if (file.contains(attention + "mergeqkv.weight")) {
    source.qkv.parts = {{attention + "mergeqkv", q + 2 * kv}};
  } else {
    source.qkv.parts = {
        {attention + "q_proj", q}, {attention + "k_proj", kv}, {attention + "v_proj", kv}};
  }
  source.qkv.cols = spec.hidden;
  source.qkv.bias = qkv_bias;
  source.attention_out = {{{attention + "o_proj", spec.hidden}}, q, Bias::optional, 0};
  source.mlp_norm = layer + "post_attention_layernorm";
  if (file.contains(mlp + "gateup_proj.weight")) {
    source.up.parts = {{mlp + "gateup_proj", 2 * int64_t{spec.inner}}};
  } else {
    source.up.parts = {{mlp + "gate_proj", spec.inner}, {mlp + "up_proj", spec.inner}};
  }
  source.up.cols = spec.hidden;
  source.down = {{{mlp + "down_proj", spec.hidden}}, spec.inner, Bias::optional, 0};
  return source;
}

int32_t inner_size(const ModelFile& file) {
  const std::string mlp = "model.layers.0.mlp.";
  if (file.contains(mlp + "gateup_proj.weight")) {
    return matrix_shape(file, mlp + "gateup_proj").first / 2;
  }
  return matrix_shape(file, mlp + "up_proj").first;
}

// Mistral's window is on when its size is given; Qwen2's also needs its switch.
int32_t window_size(const Config& config) {
  if (!config.get_bool("use_sliding_window", true)) return 0;
  return int_in(config, {"sliding_window"}, 0, 1, limits::kPositions);
}

bool matches(const ModelFile&, std::string_view type) {
  return type == "llama" || type == "mistral";
}

ModelLayout layout(const ModelFile& file) {
  const Config& config = file.config();
  const Bias bias = config.get_bool("attention_bias", false) ? Bias::required : Bias::optional;
  ModelLayout result = llama_layout(file, bias);
  if (bias == Bias::required) {
    for (LayerSource& layer : result.layers) layer.attention_out.bias = Bias::required;
  }
  if (config.get_bool("mlp_bias", false)) {
    for (LayerSource& layer : result.layers) {
      layer.up.bias = layer.down.bias = Bias::required;
    }
  }
  return result;
}

}  // namespace

ModelLayout llama_layout(const ModelFile& file, Bias qkv_bias) {
  const Config& config = file.config();
  ModelLayout result;
  ModelSpec& spec = result.spec;
  read_common(file, "model.layers.", 0, spec);
  result.embedding = "model.embed_tokens";
  const auto [vocab, hidden] = matrix_shape(file, result.embedding);
  spec.vocab = int_in(config, {"vocab_size"}, vocab, 1, limits::kVocab);
  spec.hidden = int_in(config, {"hidden_size"}, hidden, 1, limits::kWidth);
  spec.inner = int_in(config, {"intermediate_size"}, inner_size(file), 1, limits::kWidth);
  spec.kv_heads = int_in(config, {"num_key_value_heads"}, spec.heads, 1, limits::kHeads);
  spec.head_dim = int_in(config, {"head_dim"}, spec.hidden / spec.heads, 2, limits::kHeadDim);
  if (spec.heads % spec.kv_heads != 0) {
    throw Error(ErrorKind::format, "num_key_value_heads", std::to_string(spec.kv_heads),
                "a divisor of num_attention_heads = " + std::to_string(spec.heads));
  }
  if (spec.head_dim < 2 || spec.head_dim % 2 != 0) {
    throw Error(ErrorKind::format, "head_dim", std::to_string(spec.head_dim), "an even number");
  }
  require_one_of(config, "hidden_act", {"silu", "swish"});
  spec.norm = NormKind::rms;
  spec.norm_eps = static_cast<float>(float_in(config, {"rms_norm_eps"}, 1e-6, 0, 1));
  spec.sliding_window = window_size(config);
  spec.max_positions = int_in(config, {"max_position_embeddings"}, 2048, 1, limits::kPositions);
  result.rope = {.style = RopeStyle::half, .rotary_dim = spec.head_dim};
  read_rope(config, result.rope, spec.max_positions);

  for (int32_t i = 0; i < spec.layers; ++i) {
    result.layers.push_back(llama_layer(file, spec, i, qkv_bias));
  }
  result.final_norm = "model.norm";
  // A file's own head wins: fastllm's writers store a tied one again, in the linear layers' dtype.
  spec.tied_embeddings =
      !file.contains("lm_head.weight") && config.get_bool("tie_word_embeddings", false);
  result.head = {{{spec.tied_embeddings ? result.embedding : "lm_head", spec.vocab}},
                 spec.hidden,
                 Bias::optional,
                 0};
  return result;
}

const Family kLlamaFamily = {"llama", "llama, mistral", matches, layout};

}  // namespace slicellm
