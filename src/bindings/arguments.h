#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "bindings/bindings.h"

// Strict conversions of Python values at the border: a bool is no number, a float is no count, and
// whatever does not fit throws Error(invalid_argument) with the outside name of the argument.
namespace slicellm {

// A short description of a value for an error's sentence, e.g. "'abc'" or "nan".
std::string describe(const py::handle& value);

int64_t to_int(const py::handle& value, const char* field, int64_t low, int64_t high,
               const char* expected);
uint64_t to_uint64(const py::handle& value, const char* field);
double to_number(const py::handle& value, const char* field);  // NaN and inf pass
bool to_bool(const py::handle& value, const char* field);
std::string to_text(const py::handle& value, const char* field);  // UTF-8

// None -> nullopt; else milliseconds -> seconds.
std::optional<double> to_seconds(const py::handle& milliseconds, const char* field);

// A sequence or an integer array of token ids, each 0 .. 2^31 - 1.
std::vector<int32_t> to_ids(const py::handle& value, const char* field);
// A sequence of strings; a lone string is refused.
std::vector<std::string> to_texts(const py::handle& value, const char* field);

// Keyword arguments by name, with defaults; what is left over at the end is unknown.
class Keywords {
 public:
  explicit Keywords(const py::kwargs& kwargs) : left_(kwargs.attr("copy")()) {}

  // None stands for the default too.
  py::object take(const char* name) { return left_.attr("pop")(name, py::none()); }
  int64_t integer(const char* name, int64_t fallback, int64_t low, int64_t high,
                  const char* expected) {
    const py::object value = take(name);
    return value.is_none() ? fallback : to_int(value, name, low, high, expected);
  }
  int32_t count(const char* name, int32_t fallback, int32_t low, const char* expected) {
    return static_cast<int32_t>(
        integer(name, fallback, low, std::numeric_limits<int32_t>::max(), expected));
  }
  // Throws TypeError, as a call of `function` with an unknown argument does.
  void require_empty(const std::string& function) const {
    for (auto item : left_) {
      const std::string name = py::str(item.first);
      throw py::type_error(function + "() got an unexpected keyword argument '" + name + "'");
    }
  }

 private:
  py::dict left_;
};

}  // namespace slicellm
