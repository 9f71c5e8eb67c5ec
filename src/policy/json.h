#pragma once

#include <charconv>
#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>

namespace slicellm {

// Writes the flat objects that Policy::inspect returns. Keys and texts are the policies' own plain
// words; nothing is escaped.
class JsonObject {
 public:
  JsonObject& add(std::string_view key, double value) { return raw(key, number(value)); }
  JsonObject& add(std::string_view key, int64_t value) { return raw(key, std::to_string(value)); }
  JsonObject& add(std::string_view key, int32_t value) { return add(key, int64_t{value}); }
  JsonObject& add(std::string_view key, bool value) { return raw(key, value ? "true" : "false"); }
  JsonObject& add(std::string_view key, const char* text) {
    return raw(key, '"' + std::string(text) + '"');
  }
  template <typename Range>
  requires requires(const Range& r) { *r.begin() + 0; }
  JsonObject& add(std::string_view key, const Range& numbers) {
    std::string list = "[";
    for (const auto& value : numbers) {
      if (list.size() > 1) list += ',';
      list += number(value);
    }
    return raw(key, list += ']');
  }
  // `json` is a finished value.
  JsonObject& raw(std::string_view key, const std::string& json) {
    if (!body_.empty()) body_ += ',';
    body_.append("\"").append(key).append("\":").append(json);
    return *this;
  }
  std::string text() const { return '{' + body_ + '}'; }

 private:
  // Shortest text that reads back as the same number; JSON has no NaN or infinity, so null.
  static std::string number(double value) {
    if (!std::isfinite(value)) return "null";
    char buffer[32];
    return std::string(buffer, std::to_chars(buffer, buffer + sizeof(buffer), value).ptr);
  }
  std::string body_;
};

}  // namespace slicellm
