#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace slicellm {

// What went wrong, for the reader of a message and for the Python exception class it becomes.
enum class ErrorKind {
  invalid_argument,  // a caller's value is out of its range         -> slicellm.InvalidArgument
  format,            // a file's content is not what its format says -> slicellm.FormatError
  io,                // a file cannot be opened, read or written     -> slicellm.IoError
  unsupported,       // valid, but not handled by this engine        -> slicellm.Unsupported
  resource,          // memory, KV blocks or queue space exhausted   -> slicellm.ResourceError
  state,             // the call is not allowed now (engine closed)  -> slicellm.StateError
};

// The one exception type the core throws. Its text is one sentence:
// "<field>: got <value>, expected <expected>".
class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, std::string field, std::string value, std::string expected)
      : std::runtime_error(field + ": got " + value + ", expected " + expected),
        kind_(kind),
        field_(std::move(field)),
        value_(std::move(value)),
        expected_(std::move(expected)) {}

  ErrorKind kind() const { return kind_; }
  const std::string& field() const { return field_; }        // e.g. "tpot_ms"
  const std::string& value() const { return value_; }        // e.g. "-3"
  const std::string& expected() const { return expected_; }  // e.g. "a number above 0"

 private:
  ErrorKind kind_;
  std::string field_, value_, expected_;
};

}  // namespace slicellm
