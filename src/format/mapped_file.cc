#include "format/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "format/checksum.h"
#include "slicellm/error.h"

namespace slicellm {
namespace {

Error io_error(const std::string& path, const char* expected) {
  return Error(ErrorKind::io, path, std::strerror(errno), expected);
}

}  // namespace

std::shared_ptr<const MappedFile> MappedFile::open(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) throw io_error(path, "a readable file");
  struct stat info {};
  if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode) || info.st_size <= 0) {
    ::close(fd);
    throw Error(ErrorKind::io, path, S_ISREG(info.st_mode) ? "an empty file" : "no regular file",
                "a regular file with content");
  }
  const size_t size = static_cast<size_t>(info.st_size);
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
  const int map_errno = errno;
  ::close(fd);
  errno = map_errno;
  if (data == MAP_FAILED) throw io_error(path, "a file that can be mapped into memory");
#ifdef MADV_NOHUGEPAGE
  ::madvise(data, size, MADV_NOHUGEPAGE);  // a page that is read brings no 2 MiB around it
#endif
  return std::shared_ptr<const MappedFile>(
      new MappedFile(path, static_cast<const uint8_t*>(data), size,
                     int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec));
}

std::string MappedFile::identity() const {
  constexpr size_t kSamples = 256, kSampleBytes = 4096;
  uint64_t sum = kChecksumStart;
  for (size_t i = 0; i < kSamples; ++i) {
    const size_t room = size_ > kSampleBytes ? size_ - kSampleBytes : 0;
    const size_t first = room / (kSamples - 1) * i + room % (kSamples - 1) * i / (kSamples - 1);
    const auto sample = bytes().subspan(first, std::min(kSampleBytes, size_));
    sum = checksum(std::as_bytes(sample), sum);
  }
  release_pages(bytes());
  return std::to_string(size_) + " bytes, changed " + std::to_string(changed_) + ", samples " +
         std::to_string(sum);
}

MappedFile::~MappedFile() { ::munmap(const_cast<uint8_t*>(data_), size_); }

void release_pages(std::span<const uint8_t> mapped) {
  static const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const uintptr_t first = reinterpret_cast<uintptr_t>(mapped.data()) / page * page;
  const uintptr_t end = reinterpret_cast<uintptr_t>(mapped.data() + mapped.size());
  // Rounded outwards: whole pages of the mapping. Without the advice all works as well.
  ::madvise(reinterpret_cast<void*>(first), end - first, MADV_DONTNEED);
}

std::string read_text_file(const std::string& path, size_t limit) {
  const auto file = MappedFile::open(path);
  const auto bytes = file->bytes();
  if (bytes.size() > limit) {
    throw Error(ErrorKind::format, path, std::to_string(bytes.size()) + " bytes",
                "at most " + std::to_string(limit) + " bytes");
  }
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

}  // namespace slicellm
