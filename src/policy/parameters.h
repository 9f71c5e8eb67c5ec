#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "slicellm/error.h"
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

// What `make(entry, parameters)` makes of the entry of a registry that `text` names: "name" or
// "name:key=value,...". An entry's info() gives its PolicyInfo. Throws Error(invalid_argument) that
// names `kind`, the policy or the parameter.
template <typename Entries, typename Make>
auto make_by_name(const char* kind, const Entries& entries, std::string_view text, Make make) {
  const size_t colon = text.find(':');
  const std::string name(text.substr(0, colon));
  std::string known;
  for (const auto& entry : entries) {
    const PolicyInfo info = entry.info();
    if (info.name == name) {
      const bool given = colon != std::string_view::npos;
      if (given && colon + 1 == text.size()) {
        throw Error(ErrorKind::invalid_argument, kind + (" " + name), "a colon at the end",
                    "parameters as name=value,name=value after it");
      }
      return make(entry, Parameters(info, given ? text.substr(colon + 1) : std::string_view()));
    }
    if (!known.empty()) known += ", ";
    known += info.name;
  }
  throw Error(ErrorKind::invalid_argument, kind, "\"" + name + "\"", "one of " + known);
}

}  // namespace slicellm
