#include "model/config_reader.h"

#include <charconv>
#include <cstdio>

#include "slicellm/error.h"

namespace slicellm {
namespace {

std::string_view first_present(const Config& config, Keys keys) {
  for (std::string_view key : keys) {
    if (config.has(key)) return key;
  }
  return {};
}

std::string raw(const Config& config, std::string_view key) {
  return config.get_string(key, "nothing");
}

std::string short_number(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%g", value);
  return text;
}

int32_t checked_int(const Config& config, std::string_view key, int32_t low, int32_t high) {
  const int64_t value = config.require_int(key);
  if (value < low || value > high) {
    throw Error(ErrorKind::format, std::string(key), std::to_string(value),
                "an integer from " + std::to_string(low) + " to " + std::to_string(high));
  }
  return static_cast<int32_t>(value);
}

}  // namespace

int32_t int_in(const Config& config, Keys keys, int32_t fallback, int32_t low, int32_t high) {
  const std::string_view key = first_present(config, keys);
  return key.empty() ? fallback : checked_int(config, key, low, high);
}

double float_in(const Config& config, Keys keys, double fallback, double low, double high) {
  const std::string_view key = first_present(config, keys);
  if (key.empty()) return fallback;
  const double value = config.get_float(key, fallback);
  if (!(value >= low && value <= high)) {  // also catches NaN
    throw Error(ErrorKind::format, std::string(key), raw(config, key),
                "a number from " + short_number(low) + " to " + short_number(high));
  }
  return value;
}

void require_one_of(const Config& config, std::string_view key, Keys allowed) {
  if (!config.has(key)) return;
  const std::string value = config.get_string(key, "");
  for (std::string_view option : allowed) {
    if (value == option) return;
  }
  std::string expected;
  for (std::string_view option : allowed) {
    expected += (expected.empty() ? "" : " or ") + std::string(option);
  }
  throw Error(ErrorKind::unsupported, std::string(key), value, expected);
}

void require_bool(const Config& config, std::string_view key, bool fallback, bool expected) {
  if (config.get_bool(key, fallback) == expected) return;
  throw Error(ErrorKind::unsupported, std::string(key), raw(config, key),
              expected ? "true (the other variant is not supported)"
                       : "false (the other variant is not supported)");
}

std::pair<int32_t, int32_t> matrix_shape(const ModelFile& file, const std::string& name) {
  const Weight w = file.weight(name + ".weight");
  if (w.shape.size() != 2) {
    throw Error(ErrorKind::format, w.name, std::to_string(w.shape.size()) + " dimensions",
                "a matrix");
  }
  for (int64_t size : w.shape) {
    if (size < 1 || size > limits::kVocab) {
      throw Error(ErrorKind::format, w.name, std::to_string(size) + " rows or columns",
                  "1 to " + std::to_string(limits::kVocab));
    }
  }
  return {static_cast<int32_t>(w.shape[0]), static_cast<int32_t>(w.shape[1])};
}

int32_t count_layers(const ModelFile& file, std::string_view prefix) {
  int32_t count = 0;
  for (const std::string& name : file.names()) {
    if (!name.starts_with(prefix)) continue;
    int32_t index = -1;
    const char* begin = name.data() + prefix.size();
    const char* end = name.data() + name.size();
    const auto [rest, error] = std::from_chars(begin, end, index);
    if (error == std::errc() && rest != end && *rest == '.' && index >= count &&
        index < limits::kLayers) {
      count = index + 1;
    }
  }
  return count;
}

void read_common(const ModelFile& file, std::string_view layer_prefix, int32_t default_heads,
                 ModelSpec& spec) {
  const Config& config = file.config();
  const int32_t counted = count_layers(file, layer_prefix);
  if (counted == 0) {
    throw Error(ErrorKind::format, "weights", "no layer \"" + std::string(layer_prefix) + "0\"",
                "the weights of model_type " + config.get_string("model_type", "chatglm"));
  }
  spec.layers =
      int_in(config, {"num_hidden_layers", "num_layers", "n_layer"}, counted, 1, limits::kLayers);
  spec.heads = int_in(config, {"num_attention_heads", "n_head"}, default_heads, 1, limits::kHeads);
  if (spec.heads == 0) {
    throw Error(ErrorKind::format, "num_attention_heads", "nothing",
                "an integer from 1 to " + std::to_string(limits::kHeads));
  }
  for (int64_t id : config.get_ints("eos_token_id")) {
    if (id < 0 || id >= limits::kVocab) {
      throw Error(ErrorKind::format, "eos_token_id", std::to_string(id), "token ids");
    }
    spec.eos_ids.push_back(static_cast<int32_t>(id));
  }
  spec.bos_id = int_in(config, {"bos_token_id"}, -1, -1, limits::kVocab - 1);
}

}  // namespace slicellm
