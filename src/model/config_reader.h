#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

#include "slicellm/format.h"
#include "slicellm/model.h"

// Checked reading of model configurations: every number has bounds, and every complaint names the
// key it is about. A key listed first wins over later spellings of it.
namespace slicellm {

using Keys = std::initializer_list<std::string_view>;

// The value of the first present key; `fallback` when none is present. Throws Error(format) for a
// value outside [low, high].
int32_t int_in(const Config& config, Keys keys, int32_t fallback, int32_t low, int32_t high);
double float_in(const Config& config, Keys keys, double fallback, double low, double high);

// Throws Error(unsupported) unless the key is absent or has one of the allowed values.
void require_one_of(const Config& config, std::string_view key, Keys allowed);
// Throws Error(unsupported) when the key is present with another value.
void require_bool(const Config& config, std::string_view key, bool fallback, bool expected);

// Rows and columns of matrix "<name>.weight", for numbers that old files do not state. Throws
// Error(format) when it is missing or not a matrix.
std::pair<int32_t, int32_t> matrix_shape(const ModelFile& file, const std::string& name);
// 1 + the largest N in names "<prefix>N.", 0 if there is none.
int32_t count_layers(const ModelFile& file, std::string_view prefix);

// What any transformer's spec has: layers, heads and token ids, from the keys that Hugging Face and
// fastllm use. Layers "<layer_prefix>N." are counted where no key says how many there are.
// `default_heads` 0: the number of heads must be stated.
void read_common(const ModelFile& file, std::string_view layer_prefix, int32_t default_heads,
                 ModelSpec& spec);

namespace limits {
constexpr int32_t kLayers = 4096;
constexpr int32_t kWidth = 1 << 20;  // hidden, inner, heads * head_dim
constexpr int32_t kHeads = 4096;
constexpr int32_t kHeadDim = 4096;
constexpr int32_t kVocab = 1 << 24;
constexpr int32_t kPositions = 1 << 26;
}  // namespace limits

}  // namespace slicellm
