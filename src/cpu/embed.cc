#include <string>
#include <utility>

#include "cpu/ops_cpu.h"
#include "slicellm/error.h"

namespace slicellm::cpu {
namespace {

// Rows stay in the model file's mapping and are decoded when they are looked up.
class CpuEmbedding final : public EmbeddingTable {
 public:
  explicit CpuEmbedding(Weight table) : table_(std::move(table)) {}

  int64_t rows() const override { return table_.rows(); }
  int64_t cols() const override { return table_.cols(); }
  void row(int32_t id, float* out) const { decode(table_, id * cols(), cols(), out); }

 private:
  Weight table_;
};

}  // namespace

std::unique_ptr<EmbeddingTable> make_embedding(const Weight& table) {
  return std::make_unique<CpuEmbedding>(table);
}

void embed_rows(ThreadPool& pool, std::span<const int32_t> tokens, const EmbeddingTable& table,
                float* x) {
  const auto& embedding = dynamic_cast<const CpuEmbedding&>(table);
  for (const int32_t id : tokens) {
    if (id < 0 || id >= table.rows()) {
      throw Error(ErrorKind::invalid_argument, "token", std::to_string(id),
                  "an id from 0 to " + std::to_string(table.rows() - 1));
    }
  }
  constexpr int64_t kGrain = 16;  // rows worth a thread
  pool.parallel_for(static_cast<int64_t>(tokens.size()), kGrain,
                    [&](int64_t begin, int64_t end, int /*thread*/) {
                      for (int64_t i = begin; i < end; ++i) {
                        embedding.row(tokens[i], x + i * table.cols());
                      }
                    });
}

}  // namespace slicellm::cpu
