#include <cmath>

#include "model/config_reader.h"
#include "model/family.h"
#include "slicellm/error.h"

namespace slicellm {
namespace {

constexpr const char* kEmbedding = "transformer.word_embeddings";

bool matches(const ModelFile& file, std::string_view type) {
  return type == "chatglm" && !file.contains("transformer.embedding.word_embeddings.weight");
}

// ChatGLM-6B (GLM, Du et al. 2022, in its 6B form): layer norms, post-norm residuals scaled by
// sqrt(2 * layers), tanh-gelu, two-dimensional rotary positions, and a prompt whose tokens but the
// last see each other, so that it must be computed in one pass. The prompt ends with [gMASK] and
// the start token; the tokenizer's side adds them.
ModelLayout layout(const ModelFile& file) {
  const Config& config = file.config();
  ModelLayout result;
  ModelSpec& spec = result.spec;

  // Files of versions 0 and 1 state nothing: what shapes do not tell is ChatGLM-6B's.
  read_common(file, "transformer.layers.", 32, spec);
  const auto [vocab, hidden] = matrix_shape(file, kEmbedding);
  spec.vocab = int_in(config, {"vocab_size"}, vocab, 1, limits::kVocab);
  spec.hidden = int_in(config, {"hidden_size"}, hidden, 1, limits::kWidth);
  const int32_t inner = matrix_shape(file, "transformer.layers.0.mlp.dense_h_to_4h").first;
  spec.inner = int_in(config, {"inner_hidden_size"}, inner, 1, limits::kWidth);
  spec.kv_heads = spec.heads;
  spec.head_dim = spec.hidden / spec.heads;
  if (spec.hidden % spec.heads != 0 || spec.head_dim % 4 != 0) {
    throw Error(
        ErrorKind::format, "num_attention_heads", std::to_string(spec.heads),
        "heads that divide hidden_size = " + std::to_string(spec.hidden) + " into multiples of 4");
  }
  require_bool(config, "position_encoding_2d", true, true);
  spec.norm = NormKind::layer;
  spec.norm_eps = static_cast<float>(float_in(config, {"layernorm_epsilon"}, 1e-5, 0, 1));
  spec.activation = GateActivation::gelu_tanh;
  spec.residual_alpha = static_cast<float>(std::sqrt(2.0 * spec.layers));
  spec.norm_is_residual = true;
  spec.prefill_divisible = false;
  spec.max_positions = int_in(config, {"max_sequence_length"}, 2048, 1, limits::kPositions);
  result.rope = {.style = RopeStyle::glm_2d, .rotary_dim = spec.head_dim / 2};
  if (spec.bos_id < 0) spec.bos_id = 130004;
  if (spec.eos_ids.empty()) spec.eos_ids = {130005};

  const int64_t width = spec.hidden;
  for (int32_t i = 0; i < spec.layers; ++i) {
    const std::string layer = "transformer.layers." + std::to_string(i) + ".";
    LayerSource source;
    source.attention_norm = layer + "input_layernorm";
    source.qkv = {
        {{layer + "attention.query_key_value", 3 * width}}, width, Bias::required, spec.heads};
    source.attention_out = {{{layer + "attention.dense", width}}, width, Bias::required, 0};
    source.mlp_norm = layer + "post_attention_layernorm";
    source.up = {{{layer + "mlp.dense_h_to_4h", spec.inner}}, width, Bias::required, 0};
    source.down = {{{layer + "mlp.dense_4h_to_h", width}}, spec.inner, Bias::required, 0};
    result.layers.push_back(std::move(source));
  }
  result.embedding = kEmbedding;
  result.final_norm = "transformer.final_layernorm";
  spec.tied_embeddings = !file.contains("lm_head.weight");
  result.head = {
      {{spec.tied_embeddings ? kEmbedding : "lm_head", spec.vocab}}, width, Bias::optional, 0};
  return result;
}

}  // namespace

const Family kChatGlm1Family = {"chatglm1", "chatglm", matches, layout};

}  // namespace slicellm
