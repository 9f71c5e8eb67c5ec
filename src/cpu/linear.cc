#include "cpu/linear.h"

#include <algorithm>

#include "slicellm/error.h"

namespace slicellm::cpu {
namespace {

// Weights of one block stay in a core's second-level cache while all tokens pass over them.
constexpr size_t kBlockBytes = 256 << 10;
constexpr int64_t kBlockRows = 512;  // bounds the block's results of one tile
// With fewer input values than this, starting the other threads costs more than they save.
constexpr int64_t kSerialInput = 16 << 10;

// Tokens are cut into tiles of almost equal size.
struct Tiles {
  int64_t n, count;
  Tiles(int64_t tokens, int64_t max_tokens)
      : n(tokens), count((tokens + max_tokens - 1) / max_tokens) {}
  int64_t begin(int64_t tile) const { return n * tile / count; }
  int tokens(int64_t tile) const { return static_cast<int>(begin(tile + 1) - begin(tile)); }
  int64_t of(int64_t token) const { return ((token + 1) * count - 1) / n; }
};

class LinearRun {
 public:
  LinearRun(ThreadPool& pool, Isa isa, LinearWorkspace& workspace, const CpuLinear& linear,
            const LinearInput& input, const LinearOutput& output)
      : pool_(pool),
        rows_(row_kernels(isa)),
        workspace_(workspace),
        linear_(linear),
        layout_(linear.layout()),
        input_(input),
        output_(output),
        tiles_(input.n, layout_.max_tokens),
        panel_rows_(layout_.panel_rows),
        width_(linear.gated() ? linear.out_features() / 2 : linear.out_features()) {
    workspace.per_thread.resize(pool.threads());
    tile_data_ = workspace.tiles.get<std::byte>(layout_.token_bytes * input.n);
  }

  // Norms and quantises the tokens into tiles.
  void prepare() {
    if (input_.n * layout_.in <= kSerialInput) {
      prepare_tokens(0, input_.n, 0);
    } else {
      pool_.parallel_for(input_.n, 1, [&](int64_t begin, int64_t end, int thread) {
        prepare_tokens(begin, end, thread);
      });
    }
  }

  void multiply() {
    pool_.parallel_for(linear_.units(), 1, [&](int64_t begin, int64_t end, int thread) {
      multiply_units(begin, end, thread);
    });
  }

 private:
  std::byte* tile(int64_t index) const {
    return tile_data_ + tiles_.begin(index) * static_cast<int64_t>(layout_.token_bytes);
  }

  void prepare_tokens(int64_t begin, int64_t end, int thread) {
    const int64_t in = layout_.in;
    float* row = workspace_.per_thread[thread].get<float>(in);
    for (int64_t token = begin; token < end; ++token) {
      const float* x = input_.x + (input_.rows != nullptr ? input_.rows[token] : token) * in;
      if (input_.norm != nullptr) {
        float* normed = input_.normed != nullptr ? input_.normed + token * in : row;
        rows_.norm(x, in, *input_.norm, normed);
        x = normed;
      }
      const int64_t i = tiles_.of(token);
      const auto t = static_cast<int>(token - tiles_.begin(i));
      linear_.kernel().prepare(layout_, x, tiles_.tokens(i), t, tile(i));
    }
  }

  void multiply_units(int64_t begin, int64_t end, int thread) {
    const int64_t parts = linear_.gated() ? 2 : 1;  // panels of a unit
    const size_t unit_bytes = layout_.panel_bytes * parts;
    const int64_t block = std::clamp<int64_t>(kBlockBytes / unit_bytes, 1,
                                              std::max<int64_t>(1, kBlockRows / panel_rows_));
    const int64_t columns = block * panel_rows_;  // results of one part
    float* y = workspace_.per_thread[thread].get<float>(layout_.max_tokens * columns * parts);
    const TileKernel* kernels = linear_.kernel().tile[layout_.compact];
    for (int64_t first = begin; first < end; first += block) {
      const int64_t last = std::min(first + block, end);
      const int64_t first_row = first * panel_rows_;
      const int64_t count = std::min(last * panel_rows_, width_) - first_row;
      for (int64_t i = 0; i < tiles_.count; ++i) {
        const int tokens = tiles_.tokens(i);
        for (int64_t unit = first; unit < last; ++unit) {
          for (int64_t part = 0; part < parts; ++part) {
            kernels[tokens - 1](layout_, linear_.panel(unit * parts + part), tile(i),
                                y + part * columns + (unit - first) * panel_rows_, columns * parts);
          }
        }
        for (int t = 0; t < tokens; ++t) {
          finish(y + t * columns * parts, columns, first_row, count,
                 output_.out + (tiles_.begin(i) + t) * width_ + first_row);
        }
      }
    }
  }

  // Bias and epilogue of one token's rows [first_row, first_row + count).
  void finish(float* y, int64_t up_offset, int64_t first_row, int64_t count, float* out) const {
    if (const float* bias = linear_.bias()) {
      for (int64_t r = 0; r < count; ++r) y[r] += bias[first_row + r];
      if (linear_.gated()) {
        for (int64_t r = 0; r < count; ++r) y[up_offset + r] += bias[width_ + first_row + r];
      }
    }
    switch (output_.epilogue) {
      case Epilogue::store:
        std::copy_n(y, count, out);
        break;
      case Epilogue::add:
        for (int64_t r = 0; r < count; ++r) out[r] = output_.alpha * out[r] + y[r];
        break;
      case Epilogue::silu_gate:
        rows_.silu_gate(y, y + up_offset, count, out);
        break;
      case Epilogue::gelu_tanh:
        rows_.gelu_tanh(y, count, out);
        break;
    }
  }

  ThreadPool& pool_;
  const RowKernels& rows_;
  LinearWorkspace& workspace_;
  const CpuLinear& linear_;
  const LinearLayout& layout_;
  const LinearInput& input_;
  const LinearOutput& output_;
  const Tiles tiles_;
  const int64_t panel_rows_;
  const int64_t width_;  // of the output
  std::byte* tile_data_ = nullptr;
};

}  // namespace

const LinearKernels& linear_kernels(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx512) return avx512_linear_kernels;
  if (isa == Isa::avx2) return avx2_linear_kernels;
#elif defined(__aarch64__)
  if (isa == Isa::i8mm) return i8mm_linear_kernels;
  if (isa == Isa::dotprod) return dotprod_linear_kernels;
  if (isa == Isa::neon) return neon_linear_kernels;
#endif
  (void)isa;
  return portable_linear_kernels;
}

void run_linear(ThreadPool& pool, Isa isa, LinearWorkspace& workspace, const CpuLinear& linear,
                const LinearInput& input, const LinearOutput& output) {
  if (linear.gated() != (output.epilogue == Epilogue::silu_gate)) {
    throw Error(ErrorKind::invalid_argument, "linear",
                linear.gated() ? "a gated one" : "a plain one",
                linear.gated() ? "silu_gate as its activation" : "a linear packed as gated");
  }
  if (input.n <= 0) return;
  LinearRun run(pool, isa, workspace, linear, input, output);
  run.prepare();
  run.multiply();
}

}  // namespace slicellm::cpu
