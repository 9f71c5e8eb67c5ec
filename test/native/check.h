#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>

#include "slicellm/error.h"

// Checks for the native tests: a failed one is printed, and main() returns check_result().
namespace slicellm::test {

inline int& failures() {
  static int count = 0;
  return count;
}

inline void check(bool ok, const std::string& what, const char* file, int line) {
  if (ok) return;
  ++failures();
  std::fprintf(stderr, "%s:%d: failed: %s\n", file, line, what.c_str());
}

// True when function() throws an Error of `kind` about `field`.
template <class Function>
bool throws(ErrorKind kind, const std::string& field, Function&& function) {
  try {
    function();
  } catch (const Error& e) {
    if (e.kind() == kind && e.field() == field) return true;
    std::fprintf(stderr, "other error: %s\n", e.what());
  }
  return false;
}

inline int check_result() {
  if (failures() == 0) std::puts("ok");
  return failures() == 0 ? 0 : 1;
}

}  // namespace slicellm::test

#define CHECK(condition) ::slicellm::test::check((condition), #condition, __FILE__, __LINE__)
#define CHECK_MESSAGE(condition, message) \
  ::slicellm::test::check((condition), (message), __FILE__, __LINE__)
