#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "slicellm/format.h"
#include "slicellm/model.h"
#include "slicellm/ops.h"

// A file beside a model that holds its packed linears, so that the next load reads them instead of
// packing them again. It is read, not mapped: huge pages are worth more than what the copy costs
// (memory.h), and every byte is checked on the way.
//
//   "SLICEPCK", u64 bytes of the table, u64 checksum of the table,
//   table: key, inventory, count, for each linear: about, u64 bytes, u64 checksum of its panels,
//   the panels of all linears, one after the other.
//
// Texts are an int32 length and bytes; all numbers little-endian.
namespace slicellm {

// All that packed weights depend on: device form, options, and what tells the model's files apart.
std::string pack_cache_key(const ModelFile& file, const Device& device,
                           const ModelOptions& options);
// "<model>.<instruction set>.pack"; inside the directory for a model that is one.
std::string pack_cache_path(const ModelFile& file, const Device& device);

// Reads such a file. Use by one thread.
class PackCache {
 public:
  // Throws Error(io | format): no file, one of another key, or one that is damaged.
  PackCache(const std::string& path, const std::string& key);
  ~PackCache();
  PackCache(const PackCache&) = delete;
  PackCache& operator=(const PackCache&) = delete;

  const std::string& inventory() const { return inventory_; }  // see WeightLoader
  uint64_t bytes() const { return bytes_; }                    // of all panels
  // The next linear, in the order in which they were packed; `gated` as in Device::pack. Throws
  // Error(io | format).
  std::unique_ptr<PackedLinear> next(Device& device, bool gated);

 private:
  struct Entry {
    std::string about;
    uint64_t bytes, checksum;
  };
  std::string read_table(const std::string& path);
  void read_panels(const Entry& entry, int threads, std::span<std::byte> to) const;

  int file_ = -1;
  std::string inventory_;
  std::vector<Entry> entries_;
  size_t next_ = 0;
  uint64_t position_ = 0, bytes_ = 0;
};

// Writes the file; it appears complete or not at all. Throws Error(io).
void write_pack_cache(const std::string& path, const std::string& key, const std::string& inventory,
                      std::span<const PackedLinear* const> linears, int threads);

}  // namespace slicellm
