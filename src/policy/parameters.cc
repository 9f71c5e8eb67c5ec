#include "policy/parameters.h"

#include <charconv>
#include <cmath>

#include "slicellm/error.h"

namespace slicellm {
namespace {

// The shortest decimal text, "0.5" and not "0.500000".
std::string to_text(double value) {
  char buffer[32];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value).ptr;
  return std::string(buffer, end);
}

// True when all of `text` is one finite decimal number.
bool parse(const std::string& text, double& value) {
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, value);
  return error == std::errc() && rest == end && std::isfinite(value);
}

}  // namespace

Parameters::Parameters(const PolicyInfo& info, std::string_view text) : policy_(info.name) {
  std::string known;
  for (const PolicyParameter& parameter : info.parameters) {
    values_[parameter.name] = parameter.default_value;
    if (!known.empty()) known += ", ";
    known += parameter.name;
  }
  std::map<std::string, bool> given;
  while (!text.empty()) {
    const size_t comma = text.find(',');
    const std::string pair(text.substr(0, comma));
    text = comma == std::string_view::npos ? std::string_view() : text.substr(comma + 1);
    const size_t equals = pair.find('=');
    const std::string name = pair.substr(0, equals);
    if (equals == std::string::npos || (comma != std::string_view::npos && text.empty())) {
      throw Error(ErrorKind::invalid_argument, "policy " + policy_,
                  equals == std::string::npos ? "\"" + pair + "\"" : "a comma at the end",
                  "parameters as name=value,name=value");
    }
    if (!values_.count(name)) {
      throw Error(ErrorKind::invalid_argument, "policy " + policy_, "parameter \"" + name + "\"",
                  known.empty() ? "no parameters" : "one of " + known);
    }
    if (given[name]) {
      throw Error(ErrorKind::invalid_argument, policy_ + ":" + name, "it twice", "it once");
    }
    given[name] = true;
    values_[name] = pair.substr(equals + 1);
  }
}

void Parameters::refuse(const std::string& name, const std::string& expected) const {
  throw Error(ErrorKind::invalid_argument, policy_ + ":" + name, "\"" + text(name) + "\"",
              expected);
}

double Parameters::number(const std::string& name, double low, double high) const {
  double value = 0;
  if (!parse(text(name), value) || value < low || value > high) {
    refuse(name, "a number from " + to_text(low) + " to " + to_text(high));
  }
  return value;
}

double Parameters::positive(const std::string& name, double high) const {
  double value = 0;
  if (!parse(text(name), value) || value <= 0 || value > high) {
    refuse(name, "a number above 0, at most " + to_text(high));
  }
  return value;
}

int32_t Parameters::integer(const std::string& name, int32_t low, int32_t high) const {
  double value = 0;
  if (!parse(text(name), value) || value < low || value > high || value != std::floor(value)) {
    refuse(name, "an integer from " + std::to_string(low) + " to " + std::to_string(high));
  }
  return static_cast<int32_t>(value);
}

std::string Parameters::choice(const std::string& name,
                               const std::vector<std::string>& choices) const {
  std::string known;
  for (const std::string& choice : choices) {
    if (choice == text(name)) return choice;
    if (!known.empty()) known += ", ";
    known += choice;
  }
  refuse(name, "one of " + known);
}

}  // namespace slicellm
