#pragma once

#include <cstdint>
#include <cstdio>
#include <string>

namespace slicellm {

// A file that appears under its name complete or not at all: written under a temporary name in the
// same directory, renamed by commit(), removed by the destructor otherwise. Throws Error(io).
class AtomicFile {
 public:
  explicit AtomicFile(std::string path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, size_t bytes);
  void write_i32(int32_t value) { write(&value, sizeof(value)); }
  void write_f32(float value) { write(&value, sizeof(value)); }
  void write(const std::string& text) { write(text.data(), text.size()); }
  void seek(uint64_t position);

  // `path` replaces the name given at the start when it is not empty.
  void commit(const std::string& path = "");

 private:
  [[noreturn]] void fail(const char* expected);

  std::string path_;
  std::string temporary_;
  std::FILE* file_ = nullptr;
};

}  // namespace slicellm
