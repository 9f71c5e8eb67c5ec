#include <charconv>
#include <cmath>

#include "format/byte_reader.h"
#include "slicellm/error.h"
#include "slicellm/format.h"

namespace slicellm {
namespace {

std::string_view trim(std::string_view text) {
  const auto is_space = [](char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; };
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

Error wrong(std::string_view key, std::string_view value, const char* expected) {
  return Error(ErrorKind::format, std::string(key), shown(value), expected);
}

double parse_float(std::string_view key, std::string_view value) {
  const std::string_view text = trim(value);
  double result = 0;
  auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), result);
  if (error != std::errc() || stop != text.data() + text.size() || !std::isfinite(result)) {
    throw wrong(key, value, "a finite number");
  }
  return result;
}

int64_t parse_int(std::string_view key, std::string_view value) {
  const std::string_view text = trim(value);
  int64_t result = 0;
  auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), result);
  if (error == std::errc() && stop == text.data() + text.size()) return result;
  // Some writers print integers as floats ("2048.0").
  const double number = parse_float(key, value);
  if (number != std::floor(number) || std::fabs(number) > 0x1p53) {
    throw wrong(key, value, "an integer");
  }
  return static_cast<int64_t>(number);
}

const std::string* find(const Config& config, std::string_view key) {
  const auto at = config.values.find(std::string(key));
  if (at == config.values.end()) return nullptr;
  const std::string_view value = trim(at->second);
  return value.empty() || value == "null" || value == "None" ? nullptr : &at->second;
}

}  // namespace

bool Config::has(std::string_view key) const { return find(*this, key) != nullptr; }

std::string Config::get_string(std::string_view key, std::string_view fallback) const {
  const std::string* value = find(*this, key);
  return value ? *value : std::string(fallback);
}

int64_t Config::get_int(std::string_view key, int64_t fallback) const {
  const std::string* value = find(*this, key);
  return value ? parse_int(key, *value) : fallback;
}

double Config::get_float(std::string_view key, double fallback) const {
  const std::string* value = find(*this, key);
  return value ? parse_float(key, *value) : fallback;
}

bool Config::get_bool(std::string_view key, bool fallback) const {
  const std::string* value = find(*this, key);
  if (!value) return fallback;
  const std::string_view text = trim(*value);
  if (text == "true" || text == "True" || text == "1") return true;
  if (text == "false" || text == "False" || text == "0") return false;
  throw wrong(key, *value, "true or false");
}

std::vector<int64_t> Config::get_ints(std::string_view key) const {
  const std::string* value = find(*this, key);
  if (!value) return {};
  std::string_view text = trim(*value);
  if (text.front() != '[') return {parse_int(key, text)};
  if (text.back() != ']') throw wrong(key, *value, "an integer or a list of integers");
  text = trim(text.substr(1, text.size() - 2));
  std::vector<int64_t> result;
  while (!text.empty()) {
    const size_t comma = text.find(',');
    result.push_back(parse_int(key, text.substr(0, comma)));
    if (comma == std::string_view::npos) break;
    text = trim(text.substr(comma + 1));
    if (text.empty()) throw wrong(key, *value, "an integer or a list of integers");
  }
  return result;
}

int64_t Config::require_int(std::string_view key) const {
  const std::string* value = find(*this, key);
  if (!value) throw Error(ErrorKind::format, std::string(key), "nothing", "an integer");
  return parse_int(key, *value);
}

}  // namespace slicellm
