#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "slicellm/dtype.h"
#include "slicellm/tensor.h"

namespace slicellm {

// A model's configuration as flat text: nested objects flattened with dots ("rope_scaling.factor"),
// values as their file wrote them (JSON or Python literals: true/True, null/None, 1e-05, "[1, 2]").
// Typed getters accept both styles and throw Error(format) naming the key.
class Config {
 public:
  std::map<std::string, std::string> values;

  bool has(std::string_view key) const;  // present and not null/None/empty
  std::string get_string(std::string_view key, std::string_view fallback) const;
  int64_t get_int(std::string_view key, int64_t fallback) const;
  double get_float(std::string_view key, double fallback) const;
  bool get_bool(std::string_view key, bool fallback) const;
  std::vector<int64_t> get_ints(std::string_view key) const;  // an int or a list; {} if absent
  int64_t require_int(std::string_view key) const;
};

struct VocabToken {
  std::string bytes;  // as stored: a sentencepiece piece or a byte-level BPE printable form
  int32_t id = 0;
  float score = 0;
};

// The tokenizer section of a .flm file; empty for directories (their tokenizer files are read in
// Python).
struct Vocab {
  std::vector<VocabToken> tokens;  // file order
  bool has_scores = false;
  std::vector<std::string> special_tokens;
};

enum class ModelFileKind { flm, export_dir, hf_dir };

// An opened model file or directory: configuration, vocabulary and weights by name. Memory-mapped;
// weights are views that keep the mapping alive. Immutable and safe to share between threads.
class ModelFile {
 public:
  virtual ~ModelFile() = default;
  virtual ModelFileKind kind() const = 0;
  virtual const std::string& path() const = 0;
  virtual int version() const = 0;  // .flm version id (0, 1, 2); 2 for directories
  virtual const Config& config() const = 0;
  virtual const Vocab& vocab() const = 0;
  virtual std::vector<std::string> names() const = 0;  // file order
  virtual bool contains(std::string_view name) const = 0;
  // Throws Error(format) when `name` is not in the file.
  virtual Weight weight(std::string_view name) const = 0;
};

// Opens a .flm file, an `ftllm export` directory or a Hugging Face directory (config.json +
// safetensors, one file or an index). Everything declared (counts, sizes, offsets, dtypes) is
// checked against the file's length before use. Throws Error(io | format | unsupported); .bin/.pt
// checkpoints are refused with the way to convert them.
std::shared_ptr<const ModelFile> open_model_file(const std::string& path);

// progress(done_bytes, total_bytes); called from the calling thread only.
using Progress = std::function<void(uint64_t, uint64_t)>;

// What a writer stores, in file order. Weights are produced one at a time so that a whole model is
// never held in memory twice.
struct ModelWriteRequest {
  Config config;
  Vocab vocab;
  std::vector<std::string> names;
  std::function<Weight(const std::string& name)> weight;  // already in its final dtype
};

// Writes a version 2 .flm that fastllm loads. Throws Error(io | unsupported).
void write_flm(const std::string& path, const ModelWriteRequest& request, const Progress& progress);

// Writes model.safetensors (and an index when there are several shards) with fastllm's "fastllm"
// dtype for quantised tensors; config and tokenizer files are copied by the caller.
void write_export_dir(const std::string& dir, const ModelWriteRequest& request,
                      const Progress& progress);

// Overflow-checked product and sum for every size read from outside; throws Error(format).
uint64_t checked_mul(uint64_t a, uint64_t b, std::string_view field);
uint64_t checked_add(uint64_t a, uint64_t b, std::string_view field);

}  // namespace slicellm
