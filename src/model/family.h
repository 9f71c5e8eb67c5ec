#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model/rope.h"
#include "slicellm/model.h"

// What a model family is: how to recognise its configuration, the numbers of its spec, and the
// names its weights have in a file. A family is one file, family_<name>.cc, with one `Family`
// constant; it computes nothing and touches no weight. To add one: write that file, declare the
// constant below, and list it in families.cc. Loading, packing and the forward pass are shared by
// all families.
namespace slicellm {

enum class Bias {
  optional,  // used where the file has one
  required,  // the layer is wrong without it
};

// Where a linear layer's rows are found: matrices "<name>.weight" (and vectors "<name>.bias"),
// stacked in this order.
struct LinearSource {
  struct Part {
    std::string name;
    int64_t rows = 0;
  };
  std::vector<Part> parts;
  int64_t cols = 0;
  Bias bias = Bias::optional;
  // > 0: the rows of the (one) part lie [head][q, k, v][head_dim] for this many heads and are
  // brought into the order q of all heads, k of all heads, v of all heads (ChatGLM-6B).
  int32_t interleaved_heads = 0;
  // The matrix is the embedding table, which files keep as floats: packed in the dtype of the other
  // linear layers.
  bool tied = false;
};

struct LayerSource {
  std::string attention_norm;  // "<name>.weight", and "<name>.bias" for layer norms
  LinearSource qkv;            // rows: q heads, k heads, v heads
  LinearSource attention_out;
  std::string mlp_norm;
  LinearSource up;  // rows: gate then up, or up alone (ModelSpec::activation)
  LinearSource down;
};

// All that is known of a model before its weights are read.
struct ModelLayout {
  ModelSpec spec;
  RopeParameters rope;
  std::string embedding;  // "<name>.weight": [vocab, hidden]
  std::vector<LayerSource> layers;
  std::string final_norm;
  LinearSource head;  // the embedding's matrix where embeddings are tied
};

struct Family {
  const char* name;         // ModelSpec::family
  const char* model_types;  // for messages: what users call it
  bool (*matches)(const ModelFile& file, std::string_view model_type);
  // Throws Error(format) for values that are missing, absurd or contradict each other, and
  // Error(unsupported) for switches that this engine does not have.
  ModelLayout (*layout)(const ModelFile& file);
};

extern const Family kLlamaFamily;
extern const Family kQwen2Family;
extern const Family kChatGlm1Family;
extern const Family kChatGlm2Family;

// The configuration's model_type; guessed from the vocabulary for .flm versions 0 and 1, as their
// writers expect.
std::string model_type_of(const ModelFile& file);
// The layout of a file by its family, with what follows from other parts of it filled in (names,
// rotary dimensions, the attention scale 1/sqrt(head_dim)). Throws Error(unsupported) naming
// model_type, or what the family throws.
ModelLayout make_model_layout(const ModelFile& file);

// Llama's layout, which several families share: decoder layers "model.layers.N" with separate
// q/k/v and gate/up matrices, or fastllm's merged "mergeqkv" and "gateup_proj".
ModelLayout llama_layout(const ModelFile& file, Bias qkv_bias);

}  // namespace slicellm
