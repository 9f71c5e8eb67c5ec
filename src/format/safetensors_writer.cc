#include <cstdio>
#include <filesystem>
#include <memory>

#include "format/atomic_file.h"
#include "format/fastllm_types.h"
#include "format/json.h"
#include "format/safetensors.h"
#include "slicellm/error.h"
#include "slicellm/format.h"

namespace slicellm {
namespace {

namespace fs = std::filesystem;

constexpr int32_t kBlobVersion = 1;
constexpr uint64_t kHeaderAlignment = 8;

// A safetensors file begins with its header, whose size is known only after the last tensor. So
// room is kept for the longest header that these names can have; spaces fill what is not used.
class Shard {
 public:
  Shard(const std::string& path, uint64_t header_room)
      : file_(std::make_unique<AtomicFile>(path)),
        header_room_((header_room + kHeaderAlignment - 1) / kHeaderAlignment * kHeaderAlignment) {
    file_->seek(8 + header_room_);
  }

  void add(const std::string& name, const Weight& w) {
    std::string blob;
    const char* dtype = w.dtype == DType::float32    ? "F32"
                        : w.dtype == DType::float16  ? "F16"
                        : w.dtype == DType::bfloat16 ? "BF16"
                                                     : "fastllm";
    if (is_quantized(w.dtype)) {
      const int32_t codes[2] = {kBlobVersion, fastllm_type(w)};
      blob.assign(reinterpret_cast<const char*>(codes), sizeof(codes));
      blob += payload_header(w, /*blob=*/true);
    }
    const uint64_t begin = bytes_;
    file_->write(blob);
    file_->write(w.data, w.data_bytes);
    bytes_ += blob.size() + w.data_bytes;

    header_ += header_.empty() ? '{' : ',';
    header_ += json_quote(name);
    header_.append(":{\"dtype\":\"").append(dtype).append("\",\"shape\":[");
    for (size_t i = 0; i < w.shape.size(); ++i) {
      if (i > 0) header_ += ',';
      header_ += std::to_string(w.shape[i]);
    }
    header_.append("],\"data_offsets\":[").append(std::to_string(begin)).append(",");
    header_.append(std::to_string(bytes_)).append("]}");
    names_.push_back(name);
  }

  void finish() {
    header_ += header_.empty() ? "{}" : "}";
    header_.resize(header_room_, ' ');
    file_->seek(0);
    file_->write(&header_room_, sizeof(header_room_));
    file_->write(header_);
  }

  void commit(const std::string& path) { file_->commit(path); }
  uint64_t bytes() const { return bytes_; }
  const std::vector<std::string>& names() const { return names_; }

 private:
  std::unique_ptr<AtomicFile> file_;
  uint64_t header_room_;
  std::string header_;
  uint64_t bytes_ = 0;
  std::vector<std::string> names_;
};

// Longest header entry: the name, braces and keys (60 bytes), two offsets and up to 8 dimensions.
uint64_t entry_room(const std::string& name) { return json_quote(name).size() + 60 + 10 * 21; }

std::string shard_name(size_t i, size_t count) {
  if (count == 1) return "model.safetensors";
  char text[64];
  std::snprintf(text, sizeof(text), "model-%05zu-of-%05zu.safetensors", i + 1, count);
  return text;
}

std::string index_text(const std::vector<Shard>& shards) {
  uint64_t total = 0;
  for (const Shard& shard : shards) total += shard.bytes();
  std::string text = "{\n  \"metadata\": {\"total_size\": " + std::to_string(total) + "},\n";
  text += "  \"weight_map\": {";
  const char* separator = "\n";
  for (size_t i = 0; i < shards.size(); ++i) {
    for (const std::string& name : shards[i].names()) {
      text.append(separator).append("    ").append(json_quote(name)).append(": ");
      text += json_quote(shard_name(i, shards.size()));
      separator = ",\n";
    }
  }
  return text + "\n  }\n}\n";
}

// One file and an index of several must not lie side by side: readers prefer the one file.
void remove_stale(const fs::path& directory, bool single) {
  std::error_code ignored;
  fs::remove(directory / (single ? "model.safetensors.index.json" : "model.safetensors"), ignored);
}

}  // namespace

void write_export_dir(const std::string& dir, const ModelWriteRequest& request,
                      const Progress& progress) {
  const fs::path directory(dir);
  std::error_code error;
  const bool made = fs::create_directories(directory, error);
  if (error || !fs::is_directory(directory)) {
    throw Error(ErrorKind::io, dir, error ? error.message() : "no directory",
                "a directory that can be made");
  }
  try {
    uint64_t room = 2;
    for (const std::string& name : request.names) room += entry_room(name);
    std::vector<Shard> shards;
    for (size_t i = 0; i < request.names.size(); ++i) {
      const Weight w = request.weight(request.names[i]);
      if (shards.empty() || shards.back().bytes() + w.data_bytes > request.shard_bytes) {
        if (!shards.empty()) shards.back().finish();
        shards.emplace_back((directory / ("shard-" + std::to_string(shards.size()))).string(),
                            room);
      }
      shards.back().add(request.names[i], w);
      if (progress) progress(i + 1, request.names.size());
    }
    if (shards.empty()) shards.emplace_back((directory / "shard").string(), room);
    shards.back().finish();
    for (size_t i = 0; i < shards.size(); ++i) {
      shards[i].commit((directory / shard_name(i, shards.size())).string());
    }
    if (shards.size() > 1) {
      AtomicFile index((directory / "model.safetensors.index.json").string());
      index.write(index_text(shards));
      index.commit();
    }
    remove_stale(directory, shards.size() == 1);
  } catch (...) {
    if (made) fs::remove(directory, error);  // only when empty
    throw;
  }
}

}  // namespace slicellm
