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
  // Sizes, times of change and a checksum of samples of the files: differs where a file was
  // replaced or rewritten, without reading all of it.
  virtual std::string identity() const = 0;
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

// progress(done, total), in units of the callee: bytes read where a model is loaded or exported,
// weights written where a file is. Called from the calling thread only.
using Progress = std::function<void(uint64_t, uint64_t)>;

// What a writer stores, in file order. Weights are produced one at a time so that a whole model is
// never held in memory twice.
struct ModelWriteRequest {
  Config config;
  Vocab vocab;
  std::vector<std::string> names;
  std::function<Weight(const std::string& name)> weight;  // already in its final dtype
  uint64_t shard_bytes = uint64_t{4} << 30;  // directories: a new file begins beyond this much data
};

// Both writers write to temporary names beside the target and rename at the end: an error leaves
// nothing behind and an older file untouched.

// Writes a version 2 .flm that fastllm loads. The keys that say what the vocabulary section holds
// are set from `vocab`; adapters ("peft_size") are dropped. Throws Error(io | unsupported).
void write_flm(const std::string& path, const ModelWriteRequest& request, const Progress& progress);

// Writes model.safetensors (and an index when there are several shards) with fastllm's "fastllm"
// dtype for quantised tensors, making the directory if need be; config and tokenizer files are
// copied by the caller. Throws Error(io | unsupported).
void write_export_dir(const std::string& dir, const ModelWriteRequest& request,
                      const Progress& progress);

struct ExportRequest {
  std::string path;                // any readable model file or directory
  std::string output;              // ends in ".flm": a file, otherwise a directory
  std::optional<DTypeSpec> dtype;  // of linear layers; none keeps what the file has
  Config extra_config;             // added to a .flm's configuration, over the model's own
  Vocab vocab;                     // for a .flm
  int threads = 1;
};

// Converts a model: linear layers to `dtype`, norms and biases to float32, embeddings stay as they
// are; tensors that already have their type are copied bit for bit. A tied head is written out. A
// .flm gets the weight names that fastllm loads for the family (Qwen2: merged q/k/v and gate/up
// rows) and Python's True/False/None in its configuration; a directory gets the checkpoint's names
// and weights only (configuration and tokenizer files are the caller's). `progress` counts bytes
// read. Throws Error(io | format | unsupported).
void export_model(const ExportRequest& request, const Progress& progress);

// Overflow-checked product and sum for every size read from outside; throws Error(format).
uint64_t checked_mul(uint64_t a, uint64_t b, std::string_view field);
uint64_t checked_add(uint64_t a, uint64_t b, std::string_view field);

}  // namespace slicellm
