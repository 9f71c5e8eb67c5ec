#include <filesystem>
#include <set>
#include <unordered_map>

#include "format/byte_reader.h"
#include "format/json.h"
#include "format/mapped_file.h"
#include "format/readers.h"
#include "format/safetensors.h"
#include "slicellm/error.h"

namespace slicellm {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxConfigBytes = 16 << 20;
constexpr size_t kMaxIndexBytes = 100'000'000;

// Path of `name` inside a model directory. A name from an index must be a plain file name; the file
// may be a link only within the directory or into the "blobs" of a Hugging Face cache around it, so
// that a downloaded directory cannot point at other files of this machine.
std::string file_in_directory(const fs::path& directory, const std::string& name) {
  if (name.empty() || name.front() == '.' || name.find_first_of("/\\") != std::string::npos) {
    throw Error(ErrorKind::format, "file name", shown(name), "a plain file name");
  }
  std::error_code error;
  const fs::path real_directory = fs::canonical(directory, error);
  const fs::path real_file = error ? fs::path() : fs::canonical(directory / name, error);
  if (error) throw Error(ErrorKind::io, shown(name), error.message(), "a readable file");
  const fs::path parent = real_file.parent_path();
  const fs::path snapshots = real_directory.parent_path();
  const bool in_cache =
      snapshots.filename() == "snapshots" && parent == snapshots.parent_path() / "blobs";
  if (parent != real_directory && !in_cache) {
    throw Error(ErrorKind::format, shown(name), "a link out of the model directory",
                "a file inside it");
  }
  return real_file.string();
}

// Adds nested objects with dotted keys; later calls overwrite.
void flatten(const JsonValue& value, const std::string& prefix, Config& config) {
  for (const JsonMember& member : value.members) {
    if (member.value.kind == JsonValue::Kind::object) {
      flatten(member.value, prefix + member.key + ".", config);
    } else {
      config.values[prefix + member.key] = json_to_text(member.value);
    }
  }
}

void read_config(const fs::path& directory, const std::string& name, Config& config) {
  const std::string text = read_text_file(file_in_directory(directory, name), kMaxConfigBytes);
  const JsonValue value = parse_json(text, name);
  value.as_object(name);
  flatten(value, "", config);
}

void refuse_other_formats(const fs::path& directory) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(directory, error)) {
    const std::string extension = entry.path().extension().string();
    const std::string name = shown(entry.path().filename().string());
    if (extension == ".bin" || extension == ".pt" || extension == ".pth") {
      throw Error(ErrorKind::unsupported, "model directory", "a PyTorch checkpoint " + name,
                  "safetensors (load it with transformers, then save_pretrained)");
    }
    if (extension == ".gguf") {
      throw Error(ErrorKind::unsupported, "model directory", "a GGUF file " + name,
                  "the original model with safetensors");
    }
  }
}

class ModelDirectory final : public ModelFile {
 public:
  explicit ModelDirectory(const std::string& path) : path_(path) {
    const fs::path directory(path);
    if (!fs::exists(directory / "config.json")) {
      refuse_other_formats(directory);
      throw Error(ErrorKind::format, "model directory", "no config.json in it",
                  "config.json and safetensors files");
    }
    read_config(directory, "config.json", config_);
    refuse_quantised();
    if (fs::exists(directory / "generation_config.json")) {
      read_config(directory, "generation_config.json", config_);
    }
    if (fs::exists(directory / "model.safetensors")) {
      add_shard(directory, "model.safetensors");
    } else if (fs::exists(directory / "model.safetensors.index.json")) {
      read_index(directory, "model.safetensors.index.json");
    } else {
      refuse_other_formats(directory);
      throw Error(ErrorKind::format, "model directory", "no weights",
                  "model.safetensors or model.safetensors.index.json");
    }
  }

  ModelFileKind kind() const override { return kind_; }
  const std::string& path() const override { return path_; }
  int version() const override { return 2; }
  std::string identity() const override {
    std::string all;
    for (const auto& shard : shards_) all += shard->file().identity() + "; ";
    return all;
  }
  const Config& config() const override { return config_; }
  const Vocab& vocab() const override { return vocab_; }
  std::vector<std::string> names() const override { return names_; }
  bool contains(std::string_view name) const override {
    return tensors_.count(std::string(name)) > 0;
  }

  Weight weight(std::string_view name) const override {
    const auto at = tensors_.find(std::string(name));
    if (at == tensors_.end()) {
      throw Error(ErrorKind::format, "weight", "no tensor " + shown(name), "it in the directory");
    }
    return at->second.shard->weight(*at->second.tensor);
  }

 private:
  struct Located {
    const SafetensorsFile* shard;
    const SafetensorsFile::Tensor* tensor;
  };

  void refuse_quantised() const {
    const std::string prefix = "quantization_config.";
    const auto first = config_.values.lower_bound(prefix);
    if (first == config_.values.end() || !first->first.starts_with(prefix)) return;
    const std::string method = config_.get_string(prefix + "quant_method", "an unnamed method");
    throw Error(ErrorKind::unsupported, "quantization_config", shown(method),
                "an unquantised float32, float16 or bfloat16 checkpoint");
  }

  void add_shard(const fs::path& directory, const std::string& name) {
    try {
      shards_.push_back(std::make_unique<SafetensorsFile>(file_in_directory(directory, name)));
    } catch (const Error& e) {
      if (e.kind() == ErrorKind::io) throw;
      throw Error(e.kind(), name + ": " + e.field(), e.value(), e.expected());
    }
    const SafetensorsFile& shard = *shards_.back();
    if (shard.has_blobs()) kind_ = ModelFileKind::export_dir;
    for (const SafetensorsFile::Tensor& tensor : shard.tensors()) {
      if (!tensors_.emplace(tensor.name, Located{&shard, &tensor}).second) {
        throw Error(ErrorKind::format, name, "tensor " + shown(tensor.name) + " once more",
                    "each tensor in one file");
      }
      names_.push_back(tensor.name);
    }
  }

  void read_index(const fs::path& directory, const std::string& name) {
    const std::string text = read_text_file(file_in_directory(directory, name), kMaxIndexBytes);
    const JsonValue index = parse_json(text, name);
    const auto& entries = index.require("weight_map", name).as_object("weight_map");
    std::set<std::string> files;
    for (const JsonMember& entry : entries) files.insert(entry.value.as_string("weight_map"));
    for (const std::string& file : files) add_shard(directory, file);
    for (const JsonMember& entry : entries) {
      if (!contains(entry.key)) {
        throw Error(ErrorKind::format, "weight_map",
                    shown(entry.key) + " which is not in " + shown(entry.value.text),
                    "tensors of the listed files");
      }
    }
  }

  std::string path_;
  ModelFileKind kind_ = ModelFileKind::hf_dir;
  Config config_;
  Vocab vocab_;
  std::vector<std::unique_ptr<SafetensorsFile>> shards_;
  std::vector<std::string> names_;
  std::unordered_map<std::string, Located> tensors_;
};

}  // namespace

std::shared_ptr<const ModelFile> open_model_directory(const std::string& path) {
  return std::make_shared<ModelDirectory>(path);
}

}  // namespace slicellm
