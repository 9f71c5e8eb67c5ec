#include <string>

#include "cpu/ops_cpu.h"
#include "slicellm/error.h"

namespace slicellm::cpu {
namespace {

class CpuEmbedding : public EmbeddingTable {
 public:
  explicit CpuEmbedding(const Weight& table) : table_(table) {}
  int64_t rows() const override { return table_.rows(); }
  int64_t cols() const override { return table_.cols(); }
  const Weight& table() const { return table_; }

 private:
  Weight table_;
};

}  // namespace

std::unique_ptr<EmbeddingTable> make_embedding(const Weight& table) {
  return std::make_unique<CpuEmbedding>(table);
}

void embed_rows(ThreadPool&, std::span<const int32_t> tokens, const EmbeddingTable& table,
                float* x) {
  const Weight& weight = static_cast<const CpuEmbedding&>(table).table();
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0 || tokens[i] >= table.rows()) {
      throw Error(ErrorKind::invalid_argument, "token", std::to_string(tokens[i]),
                  "an id below " + std::to_string(table.rows()));
    }
    decode(weight, tokens[i] * table.cols(), table.cols(), x + i * table.cols());
  }
}

}  // namespace slicellm::cpu
