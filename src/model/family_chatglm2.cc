#include "model/config_reader.h"
#include "model/family.h"
#include "slicellm/error.h"

namespace slicellm {
namespace {

constexpr const char* kEmbedding = "transformer.embedding.word_embeddings";
constexpr const char* kQkv = "transformer.encoder.layers.0.self_attention.query_key_value";

bool matches(const ModelFile& file, std::string_view type) {
  return type == "chatglm" && file.contains("transformer.embedding.word_embeddings.weight");
}

// The long-context variants state a rope_ratio, and the model's own code decides what it means:
// ChatGLM2-6B-32K divides positions by it, ChatGLM3 and GLM-4 multiply the base with it. The
// configuration does not say which. The later models are known by a chat role (written into .flm
// files), a key that only their configurations have, or a vocabulary beyond ChatGLM2's.
void read_rope_ratio(const Config& config, const ModelSpec& spec, RopeParameters& rope) {
  const double ratio = float_in(config, {"rope_ratio"}, 1, 1e-3, 1e6);
  const bool scales_base =
      config.has("bot_role") || config.values.contains("classifier_dropout") || spec.vocab > 65024;
  if (scales_base) {
    rope.theta *= ratio;
  } else if (ratio != 1) {
    rope.scaling = RopeScaling::linear;
    rope.factor = ratio;
  }
}

int32_t kv_group_count(const ModelFile& file, const ModelSpec& spec) {
  const int32_t rows = matrix_shape(file, kQkv).first;
  const int32_t from_shape = (rows / spec.head_dim - spec.heads) / 2;
  const Config& config = file.config();
  if (!config.get_bool("multi_query_attention", true)) return spec.heads;
  return int_in(config, {"multi_query_group_num"}, from_shape, 1, limits::kHeads);
}

// ChatGLM2-6B and ChatGLM3-6B: RMS norms, grouped queries, SwiGLU, and rotary positions on
// neighbouring pairs of the first half of each head.
ModelLayout layout(const ModelFile& file) {
  const Config& config = file.config();
  ModelLayout result;
  ModelSpec& spec = result.spec;
  read_common(file, "transformer.encoder.layers.", 0, spec);
  const auto [vocab, hidden] = matrix_shape(file, kEmbedding);
  spec.vocab = int_in(config, {"padded_vocab_size"}, vocab, 1, limits::kVocab);
  spec.hidden = int_in(config, {"hidden_size"}, hidden, 1, limits::kWidth);
  const int32_t inner =
      matrix_shape(file, "transformer.encoder.layers.0.mlp.dense_h_to_4h").first / 2;
  spec.inner = int_in(config, {"ffn_hidden_size"}, inner, 1, limits::kWidth);
  spec.head_dim = int_in(config, {"kv_channels"}, spec.hidden / spec.heads, 4, limits::kHeadDim);
  if (spec.head_dim < 4 || spec.head_dim % 4 != 0) {
    throw Error(ErrorKind::format, "kv_channels", std::to_string(spec.head_dim), "a multiple of 4");
  }
  spec.kv_heads = kv_group_count(file, spec);
  if (spec.kv_heads < 1 || spec.heads % spec.kv_heads != 0) {
    throw Error(ErrorKind::format, "multi_query_group_num", std::to_string(spec.kv_heads),
                "a divisor of num_attention_heads = " + std::to_string(spec.heads));
  }
  require_bool(config, "rmsnorm", true, true);
  require_bool(config, "post_layer_norm", true, true);
  require_bool(config, "apply_residual_connection_post_layernorm", false, false);
  require_bool(config, "original_rope", true, true);
  spec.norm = NormKind::rms;
  spec.norm_eps = static_cast<float>(float_in(config, {"layernorm_epsilon"}, 1e-5, 0, 1));
  spec.max_positions = int_in(config, {"seq_length"}, 2048, 1, limits::kPositions);
  result.rope = {.style = RopeStyle::interleaved, .rotary_dim = spec.head_dim / 2};
  read_rope_ratio(config, spec, result.rope);
  if (spec.eos_ids.empty()) spec.eos_ids = {2};

  const int64_t q = int64_t{spec.heads} * spec.head_dim;
  const int64_t kv = int64_t{spec.kv_heads} * spec.head_dim;
  const bool linear_bias = config.get_bool("add_bias_linear", false);
  const Bias bias = linear_bias ? Bias::required : Bias::optional;
  const Bias qkv_bias =
      linear_bias || config.get_bool("add_qkv_bias", false) ? Bias::required : Bias::optional;
  for (int32_t i = 0; i < spec.layers; ++i) {
    const std::string layer = "transformer.encoder.layers." + std::to_string(i) + ".";
    LayerSource source;
    source.attention_norm = layer + "input_layernorm";
    source.qkv = {
        {{layer + "self_attention.query_key_value", q + 2 * kv}}, spec.hidden, qkv_bias, 0};
    source.attention_out = {{{layer + "self_attention.dense", spec.hidden}}, q, bias, 0};
    source.mlp_norm = layer + "post_attention_layernorm";
    source.up = {{{layer + "mlp.dense_h_to_4h", 2 * int64_t{spec.inner}}}, spec.hidden, bias, 0};
    source.down = {{{layer + "mlp.dense_4h_to_h", spec.hidden}}, spec.inner, bias, 0};
    result.layers.push_back(std::move(source));
  }
  result.embedding = kEmbedding;
  result.final_norm = "transformer.encoder.final_layernorm";
  spec.tied_embeddings = !file.contains("transformer.output_layer.weight") &&
                         config.get_bool("tie_word_embeddings", false);
  result.head = {{{spec.tied_embeddings ? kEmbedding : "transformer.output_layer", spec.vocab}},
                 spec.hidden,
                 Bias::optional,
                 0};
  return result;
}

}  // namespace

const Family kChatGlm2Family = {"chatglm2", "chatglm2, chatglm3", matches, layout};

}  // namespace slicellm
