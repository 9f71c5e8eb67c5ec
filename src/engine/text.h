#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace slicellm {

// Turns a stream of bytes into valid UTF-8. Bytes that can start no character, and characters cut
// short, become U+FFFD by Unicode's rule of maximal subparts (section 3.9), as in Python's
// "replace". The bytes of a character that is not complete yet are held back.
class Utf8Decoder {
 public:
  void append(std::string_view bytes, std::string& out);
  void finish(std::string& out);  // what is held back will not be completed

 private:
  std::string held_;  // a valid, incomplete prefix of one character
};

// The text of one task: tokens to bytes to UTF-8, cut before the first stop string to be completed.
// Text that may be the beginning of a stop string is held back until it is decided.
class TextAssembler {
 public:
  // `token_bytes`: id -> bytes; ids beyond it have no bytes. Both must outlive the assembler.
  TextAssembler(const std::vector<std::string>& token_bytes, const std::vector<std::string>& stop)
      : token_bytes_(&token_bytes), stop_(&stop) {}

  // Adds a token's bytes and appends the text that is now certain to `out`. True when a stop string
  // was completed: nothing may be added afterwards.
  bool add(int32_t token, std::string& out);
  // Appends what was held back, unless a stop string was found. Nothing may be added afterwards.
  void finish(std::string& out);

 private:
  bool release(std::string_view fresh, std::string& out);

  const std::vector<std::string>* token_bytes_;
  const std::vector<std::string>* stop_;
  Utf8Decoder decoder_;
  std::string held_;  // decoded text that may begin a stop string
  bool stopped_ = false;
  std::string fresh_;  // scratch
};

}  // namespace slicellm
