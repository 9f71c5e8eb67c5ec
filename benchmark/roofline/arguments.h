#pragma once

#include <cstdint>
#include <sstream>
#include <string>
#include <vector>

#include "slicellm/error.h"

// Values of the flags of the benchmarks beside this one.
namespace slicellm::roofline {

inline std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  std::stringstream stream(text);
  for (std::string part; std::getline(stream, part, ',');) parts.push_back(part);
  return parts;
}

// Throws Error(invalid_argument) for all but whole numbers above 0.
inline int64_t number(const std::string& flag, const std::string& text) {
  try {
    size_t used = 0;
    const long value = std::stol(text, &used);
    if (used == text.size() && value >= 1) return value;
  } catch (const std::exception&) {
  }
  throw Error(ErrorKind::invalid_argument, flag, text, "a whole number above 0");
}

inline std::vector<int64_t> numbers(const std::string& flag, const std::string& text) {
  std::vector<int64_t> values;
  for (const std::string& part : split(text)) values.push_back(number(flag, part));
  return values;
}

}  // namespace slicellm::roofline
