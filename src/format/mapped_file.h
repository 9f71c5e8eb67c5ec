#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace slicellm {

// A file mapped read-only into memory for as long as anything points at it. Immutable and
// thread-safe. Another process that truncates the file while it is mapped makes reads fault, as
// with every mapping: replace model files by renaming a new one into place, as our writers do.
class MappedFile {
 public:
  // Throws Error(io) when the path cannot be opened, is not a regular file or is empty.
  static std::shared_ptr<const MappedFile> open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  std::span<const uint8_t> bytes() const { return {data_, size_}; }
  // Size, time of change (when opened) and a checksum of pages from all over the file.
  std::string identity() const;

 private:
  MappedFile(std::string path, const uint8_t* data, size_t size, int64_t changed)
      : path_(std::move(path)), data_(data), size_(size), changed_(changed) {}

  std::string path_;
  const uint8_t* data_;
  size_t size_;
  int64_t changed_;  // nanoseconds since 1970
};

// Gives back the pages under a part of a mapping; reading them again brings them back from the
// file.
void release_pages(std::span<const uint8_t> mapped);

// Reads a whole small text file, at most `limit` bytes. Throws Error(io | format).
std::string read_text_file(const std::string& path, size_t limit);

}  // namespace slicellm
