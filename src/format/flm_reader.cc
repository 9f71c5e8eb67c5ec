#include <cmath>
#include <unordered_map>

#include "format/byte_reader.h"
#include "format/fastllm_types.h"
#include "format/mapped_file.h"
#include "format/readers.h"
#include "slicellm/error.h"

namespace slicellm {
namespace {

struct Record {
  std::string name;
  std::vector<int64_t> shape;
  TensorPayload payload;
};

std::string indexed(const char* what, uint64_t i) {
  return std::string(what) + "[" + std::to_string(i) + "]";
}

// Least bytes that one item of each section takes, so that a count can be checked before any
// memory is reserved for it.
constexpr uint64_t kLeastKeyValue = 8;  // two lengths
constexpr uint64_t kLeastToken = 8;     // length and id
constexpr uint64_t kLeastWeight = 17;   // name, dimensions, one of them, type, a byte of data
constexpr int32_t kMaxDims = 8;

class FlmFile final : public ModelFile {
 public:
  explicit FlmFile(std::shared_ptr<const MappedFile> file) : file_(std::move(file)) {
    ByteReader reader(file_->bytes());
    read_version(reader);
    if (version_ >= 1) {
      read_key_values(reader, "config", "");
      read_adapters(reader);
    }
    read_vocab(reader);
    read_weights(reader);
    if (reader.remaining() > 0) {
      throw Error(ErrorKind::format, "end of file",
                  std::to_string(reader.remaining()) + " bytes after the last weight", "none");
    }
    release_pages(file_->bytes());  // what lies around each tensor's header came in as well
  }

  ModelFileKind kind() const override { return ModelFileKind::flm; }
  const std::string& path() const override { return file_->path(); }
  int version() const override { return version_; }
  std::string identity() const override { return file_->identity(); }
  const Config& config() const override { return config_; }
  const Vocab& vocab() const override { return vocab_; }

  std::vector<std::string> names() const override {
    std::vector<std::string> result;
    result.reserve(records_.size());
    for (const Record& record : records_) result.push_back(record.name);
    return result;
  }

  bool contains(std::string_view name) const override {
    return index_.count(std::string(name)) > 0;
  }

  Weight weight(std::string_view name) const override {
    const auto at = index_.find(std::string(name));
    if (at == index_.end()) {
      throw Error(ErrorKind::format, "weight", "no tensor " + shown(name), "it in the file");
    }
    const Record& record = records_[at->second];
    return make_weight(record.name, record.shape, record.payload, file_);
  }

 private:
  void read_version(ByteReader& reader) {
    const auto bytes = file_->bytes();
    const std::string_view start(reinterpret_cast<const char*>(bytes.data()),
                                 std::min<size_t>(bytes.size(), 4));
    if (start == "GGUF") {
      throw Error(ErrorKind::unsupported, "model file", "a GGUF file",
                  "a .flm file or a directory with config.json and safetensors");
    }
    if (start.starts_with("PK")) {
      throw Error(ErrorKind::unsupported, "model file", "a PyTorch checkpoint",
                  "safetensors (load it with transformers, then save_pretrained)");
    }
    version_ = reader.read_i32("version");
    if (version_ < 0 || version_ > 2) {
      throw Error(ErrorKind::format, "version", std::to_string(version_),
                  "0, 1 or 2 at the start of a .flm file");
    }
  }

  void read_key_values(ByteReader& reader, const std::string& section, const std::string& prefix) {
    const uint64_t count = reader.read_count(kLeastKeyValue, section + " count");
    for (uint64_t i = 0; i < count; ++i) {
      const std::string key = reader.read_string(indexed((section + " key").c_str(), i));
      std::string value = reader.read_string(section + " " + shown(key));
      if (!config_.values.emplace(prefix + key, std::move(value)).second) {
        throw Error(ErrorKind::format, section, "key " + shown(key) + " twice", "unique keys");
      }
    }
  }

  // LoRA adapters' settings, kept as "peft.<adapter>.<key>".
  void read_adapters(ByteReader& reader) {
    const int64_t count = config_.get_int("peft_size", 0);
    if (count < 0 || static_cast<uint64_t>(count) > reader.remaining() / kLeastKeyValue) {
      throw Error(ErrorKind::format, "peft_size", std::to_string(count),
                  "a count that the file can hold");
    }
    for (int64_t i = 0; i < count; ++i) {
      const std::string name =
          reader.read_string(indexed("adapter name", static_cast<uint64_t>(i)));
      read_key_values(reader, "adapter " + shown(name), "peft." + name + ".");
    }
  }

  void read_vocab(ByteReader& reader) {
    vocab_.has_scores = config_.get_string("tokenizer_use_score", "") == "1";
    const uint64_t least = kLeastToken + (vocab_.has_scores ? 4 : 0);
    const uint64_t count = reader.read_count(least, "vocabulary count");
    vocab_.tokens.reserve(count);
    for (uint64_t i = 0; i < count; ++i) vocab_.tokens.push_back(read_token(reader, i));
    if (config_.get_string("tokenizer_has_special_tokens", "") != "1") return;
    const uint64_t specials = reader.read_count(4, "special token count");
    for (uint64_t i = 0; i < specials; ++i) {
      vocab_.special_tokens.push_back(reader.read_string(indexed("special token", i)));
    }
  }

  VocabToken read_token(ByteReader& reader, uint64_t i) {
    const std::string field = indexed("token", i);
    VocabToken token;
    const uint64_t length = reader.read_count(4, field);
    token.bytes.reserve(length);
    for (uint64_t k = 0; k < length; ++k) {
      const int32_t byte = reader.read_i32(field);
      // One int per byte; old C++ writers sign-extend bytes from 0x80.
      if (byte < -128 || byte > 255) {
        throw Error(ErrorKind::format, field, std::to_string(byte), "a byte");
      }
      token.bytes += static_cast<char>(byte & 0xff);
    }
    token.id = reader.read_i32(field + " id");
    if (token.id < 0) {
      throw Error(ErrorKind::format, field + " id", std::to_string(token.id), "0 or more");
    }
    token.score = vocab_.has_scores ? reader.read_f32(field + " score") : -static_cast<float>(i);
    if (!std::isfinite(token.score)) {
      throw Error(ErrorKind::format, field + " score", std::to_string(token.score),
                  "a finite number");
    }
    return token;
  }

  void read_weights(ByteReader& reader) {
    const uint64_t count = reader.read_count(kLeastWeight, "weight count");
    records_.reserve(count);
    for (uint64_t i = 0; i < count; ++i) {
      Record record;
      record.name = reader.read_string(indexed("weight name", i));
      if (!index_.emplace(record.name, i).second) {
        throw Error(ErrorKind::format, "weights", shown(record.name) + " twice", "unique names");
      }
      const int32_t dims = reader.read_i32(record.name + " dimensions");
      if (dims < 1 || dims > kMaxDims) {
        throw Error(ErrorKind::format, record.name + " dimensions", std::to_string(dims),
                    "1 to " + std::to_string(kMaxDims));
      }
      for (int32_t d = 0; d < dims; ++d) {
        record.shape.push_back(reader.read_i32(record.name + " shape"));
      }
      const int32_t code = reader.read_i32(record.name + " data type");
      record.payload = read_payload(reader, code, record.shape, /*blob=*/false, record.name);
      records_.push_back(std::move(record));
    }
  }

  std::shared_ptr<const MappedFile> file_;
  int version_ = 0;
  Config config_;
  Vocab vocab_;
  std::vector<Record> records_;
  std::unordered_map<std::string, size_t> index_;
};

}  // namespace

std::shared_ptr<const ModelFile> open_flm(const std::string& path) {
  return std::make_shared<FlmFile>(MappedFile::open(path));
}

}  // namespace slicellm
