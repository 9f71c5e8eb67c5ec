#include "format/json.h"

#include <algorithm>
#include <charconv>

#include "format/byte_reader.h"
#include "slicellm/error.h"

namespace slicellm {
namespace {

constexpr int kMaxDepth = 64;             // configurations nest 3 deep; keeps recursion bounded
constexpr size_t kMaxValues = 1'000'000;  // about 100 MB of JsonValue at worst

class Parser {
 public:
  Parser(std::string_view text, std::string_view source) : text_(text), source_(source) {}

  JsonValue parse_document() {
    if (!is_utf8(text_)) fail("bytes that are no UTF-8", "UTF-8 text");
    JsonValue value;
    parse_value(value, 0);
    skip_space();
    if (position_ != text_.size()) fail_here("the end of the text");
    return value;
  }

 private:
  [[noreturn]] void fail(const std::string& got, const std::string& expected) const {
    throw Error(ErrorKind::format, std::string(source_), got, expected);
  }
  [[noreturn]] void fail_here(const std::string& expected) const {
    const std::string got =
        position_ < text_.size() ? shown(text_.substr(position_, 1)) : "the end of the text";
    fail(got + " at byte " + std::to_string(position_), expected);
  }

  void skip_space() {
    while (position_ < text_.size() && (text_[position_] == ' ' || text_[position_] == '\t' ||
                                        text_[position_] == '\n' || text_[position_] == '\r')) {
      ++position_;
    }
  }
  bool accept(char c) {
    if (position_ < text_.size() && text_[position_] == c) {
      ++position_;
      return true;
    }
    return false;
  }
  void expect(char c, const char* what) {
    if (!accept(c)) fail_here(what);
  }

  void check_depth(int depth) const {
    if (depth < kMaxDepth) return;
    fail("values nested deeper than " + std::to_string(kMaxDepth), "at most that depth");
  }

  void parse_value(JsonValue& value, int depth) {
    if (++values_ > kMaxValues) {
      fail("more than " + std::to_string(kMaxValues) + " values", "at most that many");
    }
    skip_space();
    if (position_ == text_.size()) fail_here("a JSON value");
    switch (text_[position_]) {
      case '{':
        return parse_object(value, depth);
      case '[':
        return parse_array(value, depth);
      case '"':
        value.kind = JsonValue::Kind::string;
        value.text = parse_string();
        return;
      case 't':
      case 'f':
        value.kind = JsonValue::Kind::boolean;
        value.boolean = text_[position_] == 't';
        return parse_word(value.boolean ? "true" : "false");
      case 'n':
        return parse_word("null");
      default:
        return parse_number(value);
    }
  }

  void parse_word(std::string_view word) {
    if (text_.substr(position_, word.size()) != word) fail_here("a JSON value");
    position_ += word.size();
  }

  void parse_object(JsonValue& value, int depth) {
    check_depth(depth);
    value.kind = JsonValue::Kind::object;
    ++position_;
    skip_space();
    if (accept('}')) return;
    do {
      skip_space();
      if (position_ == text_.size() || text_[position_] != '"') fail_here("a key in quotes");
      JsonMember& member = value.members.emplace_back();
      member.key = parse_string();
      skip_space();
      expect(':', "':' after a key");
      parse_value(member.value, depth + 1);
      skip_space();
    } while (accept(','));
    expect('}', "',' or '}' in an object");
    auto by_key = [](const JsonMember& a, const JsonMember& b) { return a.key < b.key; };
    std::sort(value.members.begin(), value.members.end(), by_key);
    auto same = [](const JsonMember& a, const JsonMember& b) { return a.key == b.key; };
    auto twice = std::adjacent_find(value.members.begin(), value.members.end(), same);
    if (twice != value.members.end()) fail("key " + shown(twice->key) + " twice", "unique keys");
  }

  void parse_array(JsonValue& value, int depth) {
    check_depth(depth);
    value.kind = JsonValue::Kind::array;
    ++position_;
    skip_space();
    if (accept(']')) return;
    do {
      parse_value(value.items.emplace_back(), depth + 1);
      skip_space();
    } while (accept(','));
    expect(']', "',' or ']' in an array");
  }

  void parse_number(JsonValue& value) {
    const size_t begin = position_;
    accept('-');
    if (!accept('0')) parse_digits();
    if (accept('.')) parse_digits();
    if (accept('e') || accept('E')) {
      if (!accept('+')) accept('-');
      parse_digits();
    }
    value.kind = JsonValue::Kind::number;
    value.text = std::string(text_.substr(begin, position_ - begin));
  }
  void parse_digits() {
    const size_t begin = position_;
    while (position_ < text_.size() && text_[position_] >= '0' && text_[position_] <= '9') {
      ++position_;
    }
    if (position_ == begin) fail_here("a JSON value");
  }

  std::string parse_string() {
    std::string result;
    ++position_;
    while (true) {
      const size_t begin = position_;
      while (position_ < text_.size() && text_[position_] != '"' && text_[position_] != '\\' &&
             static_cast<uint8_t>(text_[position_]) >= 0x20) {
        ++position_;
      }
      result += text_.substr(begin, position_ - begin);
      if (accept('"')) return result;
      if (!accept('\\')) fail_here("a closing quote, no control characters before it");
      parse_escape(result);
    }
  }

  void parse_escape(std::string& result) {
    static constexpr std::string_view kNames = "\"\\/bfnrt";
    static constexpr std::string_view kValues = "\"\\/\b\f\n\r\t";
    if (accept('u')) {
      uint32_t code = parse_hex4();
      if (code >= 0xd800 && code <= 0xdbff && accept('\\')) {
        expect('u', "the second half of a surrogate pair");
        const uint32_t low = parse_hex4();
        if (low < 0xdc00 || low > 0xdfff) fail_here("the second half of a surrogate pair");
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
      }
      if (code >= 0xd800 && code <= 0xdfff) fail_here("no half of a surrogate pair");
      append_utf8(code, result);
      return;
    }
    const size_t which =
        position_ < text_.size() ? kNames.find(text_[position_]) : std::string_view::npos;
    if (which == std::string_view::npos) fail_here("an escape sequence");
    result += kValues[which];
    ++position_;
  }

  uint32_t parse_hex4() {
    uint32_t code = 0;
    const char* begin = text_.data() + position_;
    const char* end = begin + std::min<size_t>(4, text_.size() - position_);
    auto [stop, error] = std::from_chars(begin, end, code, 16);
    if (error != std::errc() || stop != begin + 4) fail_here("four hexadecimal digits");
    position_ += 4;
    return code;
  }

  static void append_utf8(uint32_t code, std::string& out) {
    auto put = [&](uint32_t byte) { out += static_cast<char>(byte); };
    if (code < 0x80) return put(code);
    if (code < 0x800) {
      put(0xc0 | code >> 6);
    } else {
      if (code < 0x10000) {
        put(0xe0 | code >> 12);
      } else {
        put(0xf0 | code >> 18);
        put(0x80 | (code >> 12 & 0x3f));
      }
      put(0x80 | (code >> 6 & 0x3f));
    }
    put(0x80 | (code & 0x3f));
  }

  std::string_view text_;
  std::string_view source_;
  size_t position_ = 0;
  size_t values_ = 0;
};

const char* kind_name(JsonValue::Kind kind) {
  switch (kind) {
    case JsonValue::Kind::null:
      return "null";
    case JsonValue::Kind::boolean:
      return "true or false";
    case JsonValue::Kind::number:
      return "a number";
    case JsonValue::Kind::string:
      return "a string";
    case JsonValue::Kind::array:
      return "an array";
    case JsonValue::Kind::object:
      return "an object";
  }
  return "";
}

void append_text(const JsonValue& value, bool inside, std::string& out) {
  switch (value.kind) {
    case JsonValue::Kind::null:
      out += "null";
      return;
    case JsonValue::Kind::boolean:
      out += value.boolean ? "true" : "false";
      return;
    case JsonValue::Kind::number:
      out += value.text;
      return;
    case JsonValue::Kind::string:
      out += inside ? json_quote(value.text) : value.text;
      return;
    case JsonValue::Kind::array:
      out += '[';
      for (size_t i = 0; i < value.items.size(); ++i) {
        if (i > 0) out += ", ";
        append_text(value.items[i], true, out);
      }
      out += ']';
      return;
    case JsonValue::Kind::object:
      out += '{';
      for (size_t i = 0; i < value.members.size(); ++i) {
        if (i > 0) out += ", ";
        out += json_quote(value.members[i].key) + ": ";
        append_text(value.members[i].value, true, out);
      }
      out += '}';
      return;
  }
}

}  // namespace

const JsonValue* JsonValue::find(std::string_view key) const {
  auto at = std::lower_bound(members.begin(), members.end(), key,
                             [](const JsonMember& m, std::string_view k) { return m.key < k; });
  return at != members.end() && at->key == key ? &at->value : nullptr;
}

const JsonValue& JsonValue::require(std::string_view key, std::string_view field) const {
  const JsonValue* value = find(key);
  if (value) return *value;
  throw Error(ErrorKind::format, std::string(field), "no key " + shown(key), "that key");
}

const std::string& JsonValue::as_string(std::string_view field) const {
  if (kind == Kind::string) return text;
  throw Error(ErrorKind::format, std::string(field), kind_name(kind), "a string");
}

uint64_t JsonValue::as_uint(std::string_view field) const {
  uint64_t result = 0;
  const char* end = text.data() + text.size();
  if (kind == Kind::number) {
    auto [stop, error] = std::from_chars(text.data(), end, result);
    if (error == std::errc() && stop == end) return result;
  }
  throw Error(ErrorKind::format, std::string(field),
              kind == Kind::number ? text : std::string(kind_name(kind)),
              "an integer from 0 to 2^64-1");
}

const std::vector<JsonValue>& JsonValue::as_array(std::string_view field) const {
  if (kind == Kind::array) return items;
  throw Error(ErrorKind::format, std::string(field), kind_name(kind), "an array");
}

const std::vector<JsonMember>& JsonValue::as_object(std::string_view field) const {
  if (kind == Kind::object) return members;
  throw Error(ErrorKind::format, std::string(field), kind_name(kind), "an object");
}

JsonValue parse_json(std::string_view text, std::string_view source) {
  return Parser(text, source).parse_document();
}

std::string json_to_text(const JsonValue& value) {
  std::string out;
  append_text(value, false, out);
  return out;
}

std::string json_quote(std::string_view text) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out = "\"";
  for (char c : text) {
    const uint8_t byte = static_cast<uint8_t>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20) {
      out += "\\u00";
      out += kHex[byte >> 4];
      out += kHex[byte & 15];
    } else {
      out += c;
    }
  }
  return out + '"';
}

}  // namespace slicellm
