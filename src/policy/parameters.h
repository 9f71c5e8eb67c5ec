#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "slicellm/policy.h"

namespace slicellm {

// The parameters of one policy: its defaults, overlaid with "name=value,name=value". All errors are
// Error(invalid_argument) with the field "<policy>:<parameter>".
class Parameters {
 public:
  // Throws on a name that `info` does not list, a name given twice or a pair without "=".
  Parameters(const PolicyInfo& info, std::string_view text);

  double number(const std::string& name, double low, double high) const;  // low <= value <= high
  double positive(const std::string& name, double high) const;            // 0 < value <= high
  int32_t integer(const std::string& name, int32_t low, int32_t high) const;
  std::string choice(const std::string& name, const std::vector<std::string>& choices) const;

 private:
  const std::string& text(const std::string& name) const { return values_.at(name); }
  [[noreturn]] void refuse(const std::string& name, const std::string& expected) const;

  std::string policy_;
  std::map<std::string, std::string> values_;
};

}  // namespace slicellm
