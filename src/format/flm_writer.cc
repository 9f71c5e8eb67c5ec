#include <limits>

#include "format/atomic_file.h"
#include "format/fastllm_types.h"
#include "slicellm/error.h"
#include "slicellm/format.h"

namespace slicellm {
namespace {

int32_t checked_i32(uint64_t value, const std::string& field) {
  if (value > static_cast<uint64_t>(std::numeric_limits<int32_t>::max())) {
    throw Error(ErrorKind::unsupported, field, std::to_string(value),
                "at most 2^31-1, what a .flm can hold");
  }
  return static_cast<int32_t>(value);
}

void write_string(AtomicFile& file, const std::string& text, const std::string& field) {
  file.write_i32(checked_i32(text.size(), field + " length"));
  file.write(text);
}

void write_config(AtomicFile& file, const Config& config, const Vocab& vocab) {
  std::map<std::string, std::string> values = config.values;
  std::erase_if(values, [](const auto& item) {
    return item.first == "peft_size" || item.first.starts_with("peft.");
  });
  values.erase("tokenizer_use_score");
  values.erase("tokenizer_has_special_tokens");
  if (vocab.has_scores) values["tokenizer_use_score"] = "1";
  if (!vocab.special_tokens.empty()) values["tokenizer_has_special_tokens"] = "1";
  file.write_i32(checked_i32(values.size(), "config count"));
  for (const auto& [key, value] : values) {
    write_string(file, key, "config key");
    write_string(file, value, key);
  }
}

void write_vocab(AtomicFile& file, const Vocab& vocab) {
  file.write_i32(checked_i32(vocab.tokens.size(), "vocabulary count"));
  for (const VocabToken& token : vocab.tokens) {
    file.write_i32(checked_i32(token.bytes.size(), "token length"));
    for (const char c : token.bytes) file.write_i32(static_cast<uint8_t>(c));
    file.write_i32(token.id);
    if (vocab.has_scores) file.write_f32(token.score);
  }
  if (vocab.special_tokens.empty()) return;
  file.write_i32(checked_i32(vocab.special_tokens.size(), "special token count"));
  for (const std::string& text : vocab.special_tokens) write_string(file, text, "special token");
}

void write_weight(AtomicFile& file, const std::string& name, const Weight& w) {
  write_string(file, name, "weight name");
  file.write_i32(static_cast<int32_t>(w.shape.size()));
  for (const int64_t dim : w.shape) {
    file.write_i32(checked_i32(static_cast<uint64_t>(dim), name + " shape"));
  }
  file.write_i32(fastllm_type(w));
  file.write(payload_header(w, /*blob=*/false));
  file.write(w.data, w.data_bytes);
}

}  // namespace

void write_flm(const std::string& path, const ModelWriteRequest& request,
               const Progress& progress) {
  AtomicFile file(path);
  file.write_i32(2);  // version
  write_config(file, request.config, request.vocab);
  write_vocab(file, request.vocab);
  file.write_i32(checked_i32(request.names.size(), "weight count"));
  for (size_t i = 0; i < request.names.size(); ++i) {
    write_weight(file, request.names[i], request.weight(request.names[i]));
    if (progress) progress(i + 1, request.names.size());
  }
  file.commit();
}

}  // namespace slicellm
