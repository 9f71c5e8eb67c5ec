#pragma once

#include <string>
#include <vector>

#include "slicellm/format.h"

namespace slicellm {

// One tensor of the output and where its rows come from.
struct ExportTensor {
  struct Source {
    std::string name;
    int64_t begin = 0, end = 0;  // rows; end 0 = all of them
  };
  enum class Role {
    linear,     // takes the requested dtype
    embedding,  // keeps its type
    other,      // norms, biases, buffers: float32
  };
  std::string name;
  Role role = Role::other;
  std::vector<Source> sources;
};

// The output's tensors in file order. Merges Qwen2's q/k/v and gate/up for a .flm, splits merged
// rows for a directory, and writes a tied head out (fastllm finds none otherwise). Throws
// Error(unsupported) for a model_type that has no rules here or an adapter that is not merged,
// Error(format) for shapes that do not add up.
std::vector<ExportTensor> plan_export(const ModelFile& file, bool to_flm);

// The configuration of a .flm: the model's own, literals as Python prints them, names of the rope
// settings as fastllm reads them.
Config flm_config(const ModelFile& file);

}  // namespace slicellm
