#include <array>
#include <cmath>
#include <string>

#include "model/family.h"
#include "slicellm/error.h"

namespace slicellm {
namespace {

constexpr std::array kFamilies = {&kLlamaFamily, &kQwen2Family, &kChatGlm1Family, &kChatGlm2Family};

std::string supported_types() {
  std::string out;
  for (const Family* family : kFamilies) {
    if (!out.empty()) out += ", ";
    out += family->model_types;
  }
  return out;
}

// Mixture-of-experts configurations of otherwise known families.
void refuse_experts(const Config& config) {
  for (const char* key : {"num_experts", "num_local_experts", "n_routed_experts"}) {
    if (config.has(key) && config.get_int(key, 0) > 0) {
      throw Error(ErrorKind::unsupported, "model_type",
                  "\"" + config.get_string("model_type", "") + "\" with " + key + " = " +
                      config.get_string(key, ""),
                  "a dense model of " + supported_types());
    }
  }
}

const Family& find_family(const ModelFile& file) {
  const std::string type = model_type_of(file);
  for (const Family* family : kFamilies) {
    if (!family->matches(file, type)) continue;
    refuse_experts(file.config());
    return *family;
  }
  throw Error(
      ErrorKind::unsupported, "model_type", "\"" + type + "\"",
      "one of " + supported_types() + " (mixture-of-experts and MLA models are not supported yet)");
}

}  // namespace

std::string model_type_of(const ModelFile& file) {
  if (file.config().has("model_type")) return file.config().get_string("model_type", "");
  if (file.kind() != ModelFileKind::flm || file.version() > 1) {
    throw Error(ErrorKind::format, "model_type", "nothing", "one of " + supported_types());
  }
  switch (file.vocab().tokens.size()) {
    case 106072:
      return "moss";
    case 64000:
      return "baichuan";
    default:
      return "chatglm";
  }
}

ModelLayout make_model_layout(const ModelFile& file) {
  const Family& family = find_family(file);
  ModelLayout layout = family.layout(file);
  ModelSpec& spec = layout.spec;
  spec.family = family.name;
  spec.attention_scale = static_cast<float>(1 / std::sqrt(spec.head_dim));
  spec.rope_style = layout.rope.style;
  spec.rotary_dim = layout.rope.rotary_dim;
  layout.head.tied = spec.tied_embeddings;
  return layout;
}

ModelSpec make_model_spec(const ModelFile& file) { return make_model_layout(file).spec; }

}  // namespace slicellm
