#include "model/pack_cache.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "format/atomic_file.h"
#include "format/byte_reader.h"
#include "format/checksum.h"
#include "format/parallel.h"
#include "slicellm/error.h"

namespace slicellm {
namespace {

constexpr char kMagic[] = "SLICEPCK";
constexpr size_t kMagicBytes = sizeof(kMagic) - 1;
constexpr size_t kHeaderBytes = kMagicBytes + 2 * sizeof(uint64_t);
constexpr uint64_t kMostTableBytes = uint64_t{1} << 30;
constexpr uint64_t kLeastEntryBytes = 20;
constexpr size_t kPieceBytes = size_t{1} << 20;  // read and checked by one thread at a time

uint64_t checksum_of(const std::string& text) { return checksum(std::as_bytes(std::span(text))); }

// Reads `to.size()` bytes at `position`.
void read_at(int file, uint64_t position, std::span<std::byte> to) {
  while (!to.empty()) {
    const ssize_t got = ::pread(file, to.data(), to.size(), static_cast<off_t>(position));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      throw Error(ErrorKind::io, "pack cache", got < 0 ? std::strerror(errno) : "a short file",
                  "a file that can be read");
    }
    position += static_cast<uint64_t>(got);
    to = to.subspan(static_cast<size_t>(got));
  }
}

// The checksum of panels is that of their pieces' checksums. `prepare` is called for each piece
// before, by several threads.
template <class Piece, class Prepare>
uint64_t checksum_pieces(std::span<Piece> panels, int threads, const Prepare& prepare) {
  const auto pieces = static_cast<int64_t>((panels.size() + kPieceBytes - 1) / kPieceBytes);
  std::vector<uint64_t> sums(static_cast<size_t>(pieces));
  parallel_for(pieces, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const size_t first = static_cast<size_t>(i) * kPieceBytes;
      const auto piece = panels.subspan(first, std::min(kPieceBytes, panels.size() - first));
      prepare(first, piece);
      sums[static_cast<size_t>(i)] = checksum(piece);
    }
  });
  return checksum(std::as_bytes(std::span(sums)));
}

void put(std::string& out, uint64_t value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}
void put(std::string& out, const std::string& text) {
  const auto length = static_cast<int32_t>(text.size());
  out.append(reinterpret_cast<const char*>(&length), sizeof(length));
  out += text;
}

uint64_t take_u64(ByteReader& reader) {
  uint64_t value;
  std::memcpy(&value, reader.take(sizeof(value), "pack cache").data(), sizeof(value));
  return value;
}
std::string take_text(ByteReader& reader) {
  const auto bytes = reader.take(reader.read_count(1, "pack cache"), "pack cache");
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace

std::string pack_cache_key(const ModelFile& file, const Device& device,
                           const ModelOptions& options) {
  std::string content;
  for (const auto& [name, value] : file.config().values) content += name + "=" + value + ";";
  for (const std::string& name : file.names()) content += name + ";";
  return device.packed_form() + "; activation " +
         std::to_string(static_cast<int>(options.activation)) + "; dtype " +
         (options.dtype_auto ? "auto" : to_string(options.dtype)) + "; content " +
         std::to_string(checksum_of(content)) + "; " + file.identity();
}

std::string pack_cache_path(const ModelFile& file, const Device& device) {
  const std::string form = device.packed_form();
  const std::string name = form.substr(0, form.find(' ')) + ".pack";
  if (file.kind() == ModelFileKind::flm) return file.path() + "." + name;
  return (std::filesystem::path(file.path()) / ("model." + name)).string();
}

PackCache::PackCache(const std::string& path, const std::string& key) {
  file_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file_ < 0) throw Error(ErrorKind::io, path, std::strerror(errno), "a readable file");
  try {
    const std::string table = read_table(path);
    ByteReader reader({reinterpret_cast<const uint8_t*>(table.data()), table.size()});
    const std::string found = take_text(reader);
    if (found != key) throw Error(ErrorKind::format, path, shown(found), shown(key));
    inventory_ = take_text(reader);
    entries_.resize(reader.read_count(kLeastEntryBytes, "pack cache"));
    for (Entry& entry : entries_) {
      entry.about = take_text(reader);
      entry.bytes = take_u64(reader);
      entry.checksum = take_u64(reader);
      bytes_ = checked_add(bytes_, entry.bytes, "pack cache");
    }
    struct stat info {};
    if (::fstat(file_, &info) != 0 || reader.remaining() > 0 ||
        checked_add(position_, bytes_, "pack cache") != static_cast<uint64_t>(info.st_size)) {
      throw Error(ErrorKind::format, path, "another size", "the size that its table tells");
    }
  } catch (...) {
    ::close(file_);
    throw;
  }
}

PackCache::~PackCache() { ::close(file_); }

std::string PackCache::read_table(const std::string& path) {
  std::byte header[kHeaderBytes];
  read_at(file_, 0, header);
  uint64_t numbers[2];
  std::memcpy(numbers, header + kMagicBytes, sizeof(numbers));
  if (std::memcmp(header, kMagic, kMagicBytes) != 0 || numbers[0] > kMostTableBytes) {
    throw Error(ErrorKind::format, path, "another beginning", "a file of packed weights");
  }
  std::string table(static_cast<size_t>(numbers[0]), '\0');
  read_at(file_, kHeaderBytes, std::as_writable_bytes(std::span(table)));
  if (checksum_of(table) != numbers[1]) {
    throw Error(ErrorKind::format, path, "a damaged table", "its checksum");
  }
  position_ = kHeaderBytes + table.size();
  return table;
}

std::unique_ptr<PackedLinear> PackCache::next(Device& device, bool gated) {
  if (next_ == entries_.size()) {
    throw Error(ErrorKind::format, "pack cache", std::to_string(next_) + " linears", "more");
  }
  const Entry& entry = entries_[next_++];
  auto linear = device.restore(entry.about, entry.bytes, gated, [&](std::span<std::byte> to) {
    read_panels(entry, device.threads(), to);
  });
  position_ += entry.bytes;
  return linear;
}

void PackCache::read_panels(const Entry& entry, int threads, std::span<std::byte> to) const {
  const uint64_t found = checksum_pieces(
      to, threads,
      [&](size_t first, std::span<std::byte> piece) { read_at(file_, position_ + first, piece); });
  if (found != entry.checksum) {
    throw Error(ErrorKind::format, "pack cache", "damaged weights", "their checksum");
  }
}

void write_pack_cache(const std::string& path, const std::string& key, const std::string& inventory,
                      std::span<const PackedLinear* const> linears, int threads) {
  std::string table;
  put(table, key);
  put(table, inventory);
  const auto count = static_cast<int32_t>(linears.size());
  table.append(reinterpret_cast<const char*>(&count), sizeof(count));
  for (const PackedLinear* linear : linears) {
    const PackedImage image = linear->image();
    put(table, image.about);
    put(table, uint64_t{image.panels.size()});
    put(table, checksum_pieces(image.panels, threads, [](size_t, std::span<const std::byte>) {}));
  }
  AtomicFile file(path);
  std::string header(kMagic);
  put(header, uint64_t{table.size()});
  put(header, checksum_of(table));
  file.write(header);
  file.write(table);
  for (const PackedLinear* linear : linears) {
    const PackedImage image = linear->image();
    file.write(image.panels.data(), image.panels.size());
  }
  file.commit();
}

}  // namespace slicellm
