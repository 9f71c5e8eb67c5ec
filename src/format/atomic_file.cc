#include "format/atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "slicellm/error.h"

namespace slicellm {
namespace {

constexpr size_t kBufferBytes = 1 << 20;
constexpr int kNameAttempts = 100;

}  // namespace

AtomicFile::AtomicFile(std::string path) : path_(std::move(path)) {
  int fd = -1;
  for (int attempt = 0; fd < 0 && attempt < kNameAttempts; ++attempt) {
    temporary_ = path_ + ".partial-" + std::to_string(::getpid()) + "-" + std::to_string(attempt);
    fd = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0 && errno != EEXIST) break;
  }
  if (fd < 0) fail("a writable place");
  file_ = ::fdopen(fd, "wb");
  std::setvbuf(file_, nullptr, _IOFBF, kBufferBytes);
}

AtomicFile::~AtomicFile() {
  if (file_) std::fclose(file_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::fail(const char* expected) {
  throw Error(ErrorKind::io, path_, std::strerror(errno), expected);
}

void AtomicFile::write(const void* data, size_t bytes) {
  if (bytes > 0 && std::fwrite(data, 1, bytes, file_) != bytes) fail("room to write the file");
}

void AtomicFile::seek(uint64_t position) {
  if (::fseeko(file_, static_cast<off_t>(position), SEEK_SET) != 0) fail("a seekable file");
}

void AtomicFile::commit(const std::string& path) {
  if (!path.empty()) path_ = path;
  const bool written = std::fflush(file_) == 0 && ::fsync(::fileno(file_)) == 0;
  const int write_errno = errno;
  const bool closed = std::fclose(file_) == 0;
  file_ = nullptr;
  if (!written) errno = write_errno;
  if (!written || !closed) fail("room to write the file");
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail("a place for the file");
  temporary_.clear();
}

}  // namespace slicellm
