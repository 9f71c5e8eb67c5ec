#include "model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>
#include <string_view>
#include <vector>

#include "model/config_reader.h"
#include "slicellm/error.h"

namespace slicellm {
namespace {

constexpr double kMaxFactor = 1e6;

// 1 / base^(2i/dim)
std::vector<double> plain_frequencies(double base, int32_t dim) {
  std::vector<double> freq(dim / 2);
  for (int32_t i = 0; i < dim / 2; ++i) freq[i] = std::pow(base, -2.0 * i / dim);
  return freq;
}

void scale_llama3(const RopeParameters& rope, std::vector<double>& freq) {
  const double low_wavelength = rope.original_positions / rope.low_freq_factor;
  const double high_wavelength = rope.original_positions / rope.high_freq_factor;
  for (double& f : freq) {
    const double wavelength = 2 * std::numbers::pi / f;
    if (wavelength > low_wavelength) {
      f /= rope.factor;
    } else if (wavelength >= high_wavelength) {
      const double smooth = (rope.original_positions / wavelength - rope.low_freq_factor) /
                            (rope.high_freq_factor - rope.low_freq_factor);
      f = (1 - smooth) * f / rope.factor + smooth * f;
    }
  }
}

// The dimension whose wave turns `rotations` times over the trained context (YaRN, eq. 17).
double yarn_dimension(const RopeParameters& rope, double rotations) {
  return rope.rotary_dim * std::log(rope.original_positions / (rotations * 2 * std::numbers::pi)) /
         (2 * std::log(rope.theta));
}

void scale_yarn(const RopeParameters& rope, std::vector<double>& freq) {
  double low = yarn_dimension(rope, rope.beta_fast);
  double high = yarn_dimension(rope, rope.beta_slow);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, rope.rotary_dim - 1.0);
  if (low == high) high += 0.001;
  for (size_t i = 0; i < freq.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    freq[i] = freq[i] / rope.factor * ramp + freq[i] * (1 - ramp);
  }
}

std::vector<double> frequencies(const RopeParameters& rope) {
  std::vector<double> freq = plain_frequencies(rope.theta, rope.rotary_dim);
  switch (rope.scaling) {
    case RopeScaling::none:
    case RopeScaling::dynamic:
      break;
    case RopeScaling::linear:
      for (double& f : freq) f /= rope.factor;
      break;
    case RopeScaling::llama3:
      scale_llama3(rope, freq);
      break;
    case RopeScaling::yarn:
      scale_yarn(rope, freq);
      break;
  }
  return freq;
}

// The base of a sequence of `length` tokens under dynamic NTK scaling.
double dynamic_base(const RopeParameters& rope, double length) {
  const double dim = rope.rotary_dim;
  const double stretch = rope.factor * length / rope.original_positions - (rope.factor - 1);
  return rope.theta * std::pow(stretch, dim / (dim - 2));
}

double yarn_attention_factor(const Config& config, const std::string& prefix, double factor) {
  auto mscale_of = [&](double mscale) {
    return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
  };
  const double mscale = float_in(config, {prefix + "mscale"}, 0, 0, kMaxFactor);
  const double all_dim = float_in(config, {prefix + "mscale_all_dim"}, 0, 0, kMaxFactor);
  const double fallback =
      mscale > 0 && all_dim > 0 ? mscale_of(mscale) / mscale_of(all_dim) : mscale_of(1);
  return float_in(config, {prefix + "attention_factor"}, fallback, 1e-6, kMaxFactor);
}

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kEdges = " \t\n'\"";
  const size_t first = text.find_first_not_of(kEdges);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kEdges) - first + 1);
}

// torch2flm writes objects that it does not know as Python literals: "{'rope_theta': 1e6, ...}".
// Adds their members to the configuration under dotted keys, as every other reader does.
void unfold(const std::string& key, Config& config) {
  if (!config.has(key)) return;
  const std::string value = config.get_string(key, "");
  std::string_view text = trimmed(value);
  const Error wrong(ErrorKind::format, key, value, "an object of names and numbers");
  if (!text.starts_with('{') || text.find_first_of("{}[]", 1) != text.size() - 1) throw wrong;
  text = text.substr(1, text.size() - 2);
  while (!trimmed(text).empty()) {
    const size_t comma = std::min(text.find(','), text.size());
    const std::string_view member = text.substr(0, comma);
    const size_t colon = member.find(':');
    if (colon == std::string_view::npos) throw wrong;
    const std::string name(trimmed(member.substr(0, colon)));
    config.values[key + "." + name] = trimmed(member.substr(colon + 1));
    text.remove_prefix(std::min(comma + 1, text.size()));
  }
}

RopeScaling parse_scaling(const std::string& key, const std::string& text) {
  if (text == "default" || text == "none") return RopeScaling::none;
  if (text == "linear") return RopeScaling::linear;
  if (text == "dynamic") return RopeScaling::dynamic;
  if (text == "llama3") return RopeScaling::llama3;
  if (text == "yarn") return RopeScaling::yarn;
  throw Error(ErrorKind::unsupported, key, text, "default, linear, dynamic, llama3 or yarn");
}

}  // namespace

void read_rope(const Config& original, RopeParameters& rope, int32_t& max_positions) {
  Config config = original;
  unfold("rope_parameters", config);
  unfold("rope_scaling", config);
  rope.theta =
      float_in(config, {"rope_parameters.rope_theta", "rope_theta"}, rope.theta, 1.001, 1e15);
  std::string prefix, type_key;
  for (const char* name : {"rope_parameters.", "rope_scaling."}) {
    for (const char* key : {"rope_type", "type"}) {
      if (prefix.empty() && config.has(std::string(name) + key)) {
        prefix = name;
        type_key = prefix + key;
      }
    }
  }
  for (const char* key : {"partial_rotary_factor", "rope_parameters.partial_rotary_factor"}) {
    const double share = float_in(config, {key}, 1, 0, 1);
    if (share != 1) {
      throw Error(ErrorKind::unsupported, key, config.get_string(key, ""), "1");
    }
  }
  if (prefix.empty()) return;
  rope.scaling = parse_scaling(type_key, config.get_string(type_key, ""));
  if (rope.scaling == RopeScaling::none) return;

  const double positions = static_cast<double>(int_in(
      config, {prefix + "original_max_position_embeddings"}, max_positions, 1, limits::kPositions));
  // transformers takes dynamic's trained context from max_position_embeddings alone.
  rope.original_positions = rope.scaling == RopeScaling::dynamic ? max_positions : positions;
  if (!config.has(prefix + "factor") && rope.scaling != RopeScaling::yarn) {
    throw Error(ErrorKind::format, prefix + "factor", "nothing", "a number of at least 1");
  }
  rope.factor = float_in(config, {prefix + "factor"}, std::max(1.0, max_positions / positions), 1,
                         kMaxFactor);
  switch (rope.scaling) {
    case RopeScaling::none:
      break;
    case RopeScaling::linear:
      break;
    case RopeScaling::dynamic:
      if (rope.rotary_dim <= 2) {
        throw Error(ErrorKind::unsupported, type_key, "dynamic with 2 rotated dimensions",
                    "at least 4 rotated dimensions");
      }
      break;
    case RopeScaling::llama3:
      rope.low_freq_factor = float_in(config, {prefix + "low_freq_factor"}, 1, 1e-6, kMaxFactor);
      rope.high_freq_factor = float_in(config, {prefix + "high_freq_factor"}, 4, 1e-6, kMaxFactor);
      if (rope.high_freq_factor <= rope.low_freq_factor) {
        throw Error(ErrorKind::format, prefix + "high_freq_factor",
                    config.get_string(prefix + "high_freq_factor", "4"),
                    "a number above low_freq_factor");
      }
      return;  // max_position_embeddings is already the stretched context
    case RopeScaling::yarn:
      rope.beta_fast = float_in(config, {prefix + "beta_fast"}, 32, 1e-6, kMaxFactor);
      rope.beta_slow = float_in(config, {prefix + "beta_slow"}, 1, 1e-6, kMaxFactor);
      rope.truncate = config.get_bool(prefix + "truncate", true);
      rope.attention_factor = yarn_attention_factor(config, prefix, rope.factor);
      break;
  }
  const double stretched = std::min<double>(rope.factor * rope.original_positions,
                                            static_cast<double>(limits::kPositions));
  max_positions = std::max(max_positions, static_cast<int32_t>(stretched));
}

void extend_rope_table(const RopeParameters& rope, int32_t positions, RopeTable& table) {
  table.style = rope.style;
  table.rotary_dim = rope.rotary_dim;
  if (positions <= table.positions) return;
  const size_t half = static_cast<size_t>(rope.rotary_dim) / 2;
  table.cos.resize(half * positions);
  table.sin.resize(half * positions);
  std::vector<double> freq = frequencies(rope);
  for (int32_t p = table.positions; p < positions; ++p) {
    if (rope.scaling == RopeScaling::dynamic && p + 1 > rope.original_positions) {
      freq = plain_frequencies(dynamic_base(rope, p + 1.0), rope.rotary_dim);
    }
    for (size_t i = 0; i < half; ++i) {
      const double angle = p * freq[i];
      table.cos[p * half + i] = static_cast<float>(std::cos(angle) * rope.attention_factor);
      table.sin[p * half + i] = static_cast<float>(std::sin(angle) * rope.attention_factor);
    }
  }
  table.positions = positions;
}

}  // namespace slicellm
