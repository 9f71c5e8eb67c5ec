#include "model/config_reader.h"
#include "model/family.h"

namespace slicellm {
namespace {

bool matches(const ModelFile&, std::string_view type) { return type == "qwen2"; }

// Qwen2 and Qwen2.5: Llama with biases on q, k and v. Its sliding window is off unless
// use_sliding_window says otherwise, and then holds only from layer max_window_layers on.
ModelLayout layout(const ModelFile& file) {
  ModelLayout result = llama_layout(file, Bias::required);
  const Config& config = file.config();
  if (!config.get_bool("use_sliding_window", false)) result.spec.sliding_window = 0;
  result.spec.window_from_layer = int_in(config, {"max_window_layers"}, 28, 0, limits::kLayers);
  return result;
}

}  // namespace

const Family kQwen2Family = {"qwen2", "qwen2", matches, layout};

}  // namespace slicellm
