#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include "slicellm/error.h"

namespace slicellm {

static_assert(std::endian::native == std::endian::little, "model files are read in place");

// Reads little-endian fields from a buffer in order. Every read is checked against what is left
// and throws Error(format) naming the field.
class ByteReader {
 public:
  explicit ByteReader(std::span<const uint8_t> bytes) : bytes_(bytes) {}

  uint64_t remaining() const { return bytes_.size() - position_; }

  std::span<const uint8_t> take(uint64_t count, std::string_view field) {
    if (count > remaining()) {
      throw Error(ErrorKind::format, std::string(field),
                  std::to_string(remaining()) + " bytes before the end of the file",
                  std::to_string(count) + " bytes");
    }
    auto result = bytes_.subspan(position_, count);
    position_ += count;
    return result;
  }

  int32_t read_i32(std::string_view field) { return read<int32_t>(field); }
  float read_f32(std::string_view field) { return read<float>(field); }

  // A count of items of at least `item_bytes` bytes each: not negative, and all fit in the rest.
  uint64_t read_count(uint64_t item_bytes, std::string_view field) {
    const int32_t count = read_i32(field);
    if (count < 0 || static_cast<uint64_t>(count) > remaining() / item_bytes) {
      throw Error(ErrorKind::format, std::string(field), std::to_string(count),
                  "a count from 0 to " + std::to_string(remaining() / item_bytes) +
                      " (what the rest of the file can hold)");
    }
    return static_cast<uint64_t>(count);
  }

  // int32 length and that many bytes of UTF-8.
  std::string read_string(std::string_view field);

 private:
  template <typename T>
  T read(std::string_view field) {
    T value;
    std::memcpy(&value, take(sizeof(T), field).data(), sizeof(T));
    return value;
  }

  std::span<const uint8_t> bytes_;
  size_t position_ = 0;
};

// Whether `text` is well-formed UTF-8 (no overlong forms, no surrogates, at most U+10FFFF).
bool is_utf8(std::string_view text);

// `text` for an error message: quoted, shortened, without control or non-ASCII bytes.
std::string shown(std::string_view text);

}  // namespace slicellm
