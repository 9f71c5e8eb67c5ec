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
int64_t int_in(const Config& config, Keys keys, int64_t fallback, int64_t low, int64_t high);
// As above, but throws Error(format) when no key is present.
int64_t required_int_in(const Config& config, Keys keys, int64_t low, int64_t high);
double float_in(const Config& config, Keys keys, double fallback, double low, double high);

// Throws Error(unsupported) unless the key is absent or has one of the allowed values.
void require_one_of(const Config& config, std::string_view key, Keys allowed);
// Throws Error(unsupported) when the key is present with another value.
void require_bool(const Config& config, std::string_view key, bool fallback, bool expected);

// Rows and columns of matrix "<name>.weight", for numbers that old files do not state. Throws
// Error(format) when it is missing or not a matrix.
std::pair<int64_t, int64_t> matrix_shape(const ModelFile& file, const std::string& name);
// 1 + the largest N in names "<prefix>N.", 0 if there is none.
int64_t count_layers(const ModelFile& file, std::string_view prefix);

// What any transformer's spec has: layers, heads and token ids, from the keys that Hugging Face and
// fastllm use. Layers "<layer_prefix>N." are counted where no key says how many there are.
// `default_heads` 0: the number of heads must be stated.
void read_common(const ModelFile& file, std::string_view layer_prefix, int32_t default_heads,
                 ModelSpec& spec);

namespace limits {
constexpr int64_t kLayers = 4096;
constexpr int64_t kWidth = int64_t{1} << 20;  // hidden, inner, heads * head_dim
constexpr int64_t kHeads = 4096;
constexpr int64_t kHeadDim = 4096;
constexpr int64_t kVocab = int64_t{1} << 24;
constexpr int64_t kPositions = int64_t{1} << 26;
}  // namespace limits

}  // namespace slicellm
