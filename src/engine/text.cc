#include "engine/text.h"

#include <algorithm>

namespace slicellm {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

// Length of the character that `lead` starts; 0 when no character starts with it.
size_t character_size(unsigned char lead) {
  if (lead < 0x80) return 1;
  if (lead >= 0xC2 && lead <= 0xDF) return 2;
  if (lead >= 0xE0 && lead <= 0xEF) return 3;
  if (lead >= 0xF0 && lead <= 0xF4) return 4;
  return 0;
}

// Whether `byte` may follow as the `index`-th byte of a character (Unicode, table 3-7).
bool may_follow(unsigned char lead, size_t index, unsigned char byte) {
  unsigned char low = 0x80, high = 0xBF;
  if (index == 1) {
    if (lead == 0xE0) low = 0xA0;   // no overlong forms
    if (lead == 0xED) high = 0x9F;  // no surrogates
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;  // nothing above U+10FFFF
  }
  return byte >= low && byte <= high;
}

}  // namespace

void Utf8Decoder::append(std::string_view bytes, std::string& out) {
  for (char c : bytes) {
    const unsigned char byte = static_cast<unsigned char>(c);
    if (!held_.empty()) {
      const unsigned char lead = static_cast<unsigned char>(held_[0]);
      if (may_follow(lead, held_.size(), byte)) {
        held_.push_back(c);
        if (held_.size() == character_size(lead)) {
          out += held_;
          held_.clear();
        }
        continue;
      }
      out += kReplacement;
      held_.clear();
    }
    switch (character_size(byte)) {
      case 0:
        out += kReplacement;
        break;
      case 1:
        out.push_back(c);
        break;
      default:
        held_.push_back(c);
    }
  }
}

void Utf8Decoder::finish(std::string& out) {
  if (!held_.empty()) out += kReplacement;
  held_.clear();
}

bool TextAssembler::add(int32_t token, std::string& out) {
  if (token < 0 || static_cast<size_t>(token) >= token_bytes_->size()) return false;
  fresh_.clear();
  decoder_.append((*token_bytes_)[token], fresh_);
  return release(fresh_, out);
}

void TextAssembler::finish(std::string& out) {
  if (stopped_) return;
  fresh_.clear();
  decoder_.finish(fresh_);
  if (!release(fresh_, out)) out += held_;
  held_.clear();
}

bool TextAssembler::release(std::string_view fresh, std::string& out) {
  if (stop_->empty()) {
    out += fresh;
    return false;
  }
  const size_t before = held_.size();
  held_ += fresh;
  // The first end of a stop string decides, so that the cut does not depend on how the text was
  // split into tokens; of those that end there, the longest.
  for (size_t end = before + 1; end <= held_.size(); ++end) {
    const std::string_view text = std::string_view(held_).substr(0, end);
    size_t longest = 0;
    for (const std::string& stop : *stop_) {
      if (text.ends_with(stop)) longest = std::max(longest, stop.size());
    }
    if (longest > 0) {
      out.append(held_, 0, end - longest);
      held_.clear();
      stopped_ = true;
      return true;
    }
  }
  // Keep the longest tail that may begin a stop string.
  size_t keep = 0;
  for (const std::string& stop : *stop_) {
    for (size_t size = std::min(stop.size() - 1, held_.size()); size > keep; --size) {
      if (std::string_view(held_).ends_with(std::string_view(stop).substr(0, size))) {
        keep = size;
        break;
      }
    }
  }
  out.append(held_, 0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return false;
}

}  // namespace slicellm
