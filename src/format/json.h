#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace slicellm {

struct JsonMember;

// A parsed JSON value. Numbers keep their text, so that large integers and the way a file wrote
// them survive. A plain value type; immutable use is thread-safe.
class JsonValue {
 public:
  enum class Kind : uint8_t { null, boolean, number, string, array, object };

  Kind kind = Kind::null;
  bool boolean = false;
  std::string text;                 // a string's content (UTF-8), or a number as written
  std::vector<JsonValue> items;     // array
  std::vector<JsonMember> members;  // object, sorted by key, keys unique

  // The member called `key`, or nullptr (also when this is no object).
  const JsonValue* find(std::string_view key) const;

  // Typed access; each throws Error(format) naming `field`.
  const JsonValue& require(std::string_view key, std::string_view field) const;
  const std::string& as_string(std::string_view field) const;
  uint64_t as_uint(std::string_view field) const;  // written as plain digits
  const std::vector<JsonValue>& as_array(std::string_view field) const;
  const std::vector<JsonMember>& as_object(std::string_view field) const;
};

struct JsonMember {
  std::string key;
  JsonValue value;
};

// Strict RFC 8259: one value, valid UTF-8, no comments, no trailing commas, no NaN, no duplicate
// keys; at most 64 levels deep and a million values. Throws Error(format) with `source` as the
// field and the byte where it went wrong.
JsonValue parse_json(std::string_view text, std::string_view source);

// Text of a value: strings as they are, everything else as compact JSON ("[1, 2]", "true").
std::string json_to_text(const JsonValue& value);

// `text` as a JSON string literal with its quotes.
std::string json_quote(std::string_view text);

}  // namespace slicellm
