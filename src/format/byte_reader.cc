#include "format/byte_reader.h"

#include <limits>

#include "slicellm/format.h"

namespace slicellm {

std::string ByteReader::read_string(std::string_view field) {
  const uint64_t length = read_count(1, field);
  const auto bytes = take(length, field);
  std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (!is_utf8(text)) {
    throw Error(ErrorKind::format, std::string(field), shown(text), "valid UTF-8");
  }
  return text;
}

bool is_utf8(std::string_view text) {
  const auto* p = reinterpret_cast<const uint8_t*>(text.data());
  const auto* end = p + text.size();
  while (p < end) {
    const uint8_t lead = *p++;
    if (lead < 0x80) continue;
    int more = 0;
    uint32_t code = 0, least = 0;
    if (lead >= 0xc2 && lead <= 0xdf) {
      more = 1, code = lead & 0x1fu, least = 0x80;
    } else if (lead >= 0xe0 && lead <= 0xef) {
      more = 2, code = lead & 0x0fu, least = 0x800;
    } else if (lead >= 0xf0 && lead <= 0xf4) {
      more = 3, code = lead & 0x07u, least = 0x10000;
    } else {
      return false;
    }
    if (end - p < more) return false;
    for (int i = 0; i < more; ++i) {
      if ((*p & 0xc0u) != 0x80u) return false;
      code = code << 6 | (*p++ & 0x3fu);
    }
    if (code < least || code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff)) return false;
  }
  return true;
}

std::string shown(std::string_view text) {
  constexpr size_t kShown = 60;
  std::string result = "\"";
  for (char c : text.substr(0, kShown)) {
    result += c >= 0x20 && c < 0x7f ? c : '?';
  }
  result += text.size() > kShown ? "...\"" : "\"";
  return result;
}

uint64_t checked_mul(uint64_t a, uint64_t b, std::string_view field) {
  if (b != 0 && a > std::numeric_limits<uint64_t>::max() / b) {
    throw Error(ErrorKind::format, std::string(field),
                std::to_string(a) + " times " + std::to_string(b), "a size below 2^64");
  }
  return a * b;
}

uint64_t checked_add(uint64_t a, uint64_t b, std::string_view field) {
  if (a > std::numeric_limits<uint64_t>::max() - b) {
    throw Error(ErrorKind::format, std::string(field),
                std::to_string(a) + " plus " + std::to_string(b), "a size below 2^64");
  }
  return a + b;
}

}  // namespace slicellm
