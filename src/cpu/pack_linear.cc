#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <string>

#include "cpu/linear.h"
#include "format/weight_stack.h"
#include "slicellm/dtype.h"
#include "slicellm/error.h"

namespace slicellm::cpu {
namespace {

// Packed between releases of what was read, so that no tensor is held twice.
constexpr size_t kSliceBytes = size_t{4} << 20;

bool is_half(float v) {
  return std::abs(half_to_float(float_to_half(v)) - v) <= 2e-7f * std::abs(v);
}

}  // namespace

class LinearPacker {
 public:
  LinearPacker(ThreadPool& pool, Isa isa, std::span<const Weight> matrices,
               std::span<const std::vector<float>> biases, ActivationType activation, bool gated)
      : pool_(pool), stack_(matrices, biases, gated) {
    LinearShape shape{};
    shape.dtype = stack_.dtype();
    shape.integer = is_quantized(shape.dtype) && activation != ActivationType::float32;
    shape.compact = is_quantized(shape.dtype) && is_compact();
    shape.gated = gated;
    shape.in = stack_.cols();
    shape.out = stack_.rows();
    shape.group = stack_.group_columns();
    linear_ = std::make_unique<CpuLinear>(isa, shape);
    linear_->bias_ = stack_.bias();
  }

  std::unique_ptr<CpuLinear> pack(WeightArena& arena) {
    const LinearLayout& layout = linear_->layout_;
    linear_->data_ = arena.allocate(linear_->bytes());
    const auto panels = static_cast<int64_t>(kSliceBytes / (2 * layout.panel_bytes) + 1) * 2;
    for (int64_t first = 0; first < linear_->panels_; first += panels) {
      const int64_t last = std::min(first + panels, linear_->panels_);
      pool_.parallel_for(last - first, 1, [&](int64_t begin, int64_t end, int) {
        for (int64_t p = first + begin; p < first + end; ++p) pack_panel(p);
      });
      release_panels(first, last);
    }
    return std::move(linear_);
  }

 private:
  DType dtype() const { return stack_.dtype(); }

  void pack_panel(int64_t p) {
    const LinearLayout& layout = linear_->layout_;
    std::byte* panel = linear_->data_.get() + p * static_cast<int64_t>(layout.panel_bytes);
    for (int r = 0; r < layout.panel_rows; ++r) {
      const int64_t row = source_row(p, r);
      if (row < 0) continue;  // padding: memory of the arena is zero
      if (is_quantized(dtype())) {
        pack_int_row(row, r, panel);
      } else {
        pack_float_row(row, r, panel);
      }
    }
  }

  // The rows of panels [first, last) are packed.
  void release_panels(int64_t first, int64_t last) const {
    const int64_t rows = linear_->layout_.panel_rows;
    if (!linear_->gated()) return stack_.release(first * rows, last * rows);
    const int64_t inner = linear_->shape_.out / 2, end = std::min(last / 2 * rows, inner);
    stack_.release(first / 2 * rows, end);
    stack_.release(first / 2 * rows + inner, end + inner);
  }

  bool is_compact() const {
    std::atomic<bool> compact{true};
    for (const Weight& w : stack_.matrices()) {
      const auto count = static_cast<int64_t>(w.scale.size());
      pool_.parallel_for(count, 1024, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
          if (!is_half(w.scale[i]) || zero_point(w.scale[i], w.minimum[i]) < 0) {
            compact.store(false, std::memory_order_relaxed);
            return;
          }
        }
      });
    }
    return compact;
  }

  // The stacked row that sits at row r of a panel; -1 for padding.
  int64_t source_row(int64_t panel, int r) const {
    const int64_t rows = linear_->layout_.panel_rows;
    if (!linear_->gated()) return panel * rows + r < linear_->shape_.out ? panel * rows + r : -1;
    const int64_t inner = linear_->shape_.out / 2;
    const int64_t row = panel / 2 * rows + r;
    return row < inner ? row + (panel % 2) * inner : -1;
  }

  void pack_float_row(int64_t row, int r, std::byte* panel) const {
    const LinearLayout& layout = linear_->layout_;
    const WeightStack::Row source = stack_.row(row);
    const size_t size = dtype_bits(dtype()) / 8;
    const auto* from = static_cast<const std::byte*>(source.matrix->data) +
                       static_cast<size_t>(source.row * layout.in) * size;
    std::byte* to = panel + r * size;
    const size_t stride = layout.panel_rows * size;
    for (int64_t k = 0; k < layout.in; ++k) {
      if (size == 2) {
        std::memcpy(to, from, 2);
      } else {
        std::memcpy(to, from, 4);
      }
      to += stride;
      from += size;
    }
  }

  // Columns begin..end of a row as one byte each, padded with zeros to whole steps; returns their
  // number.
  int read_codes(const Weight& w, int64_t row, int64_t begin, int64_t end, uint8_t* codes) const {
    const auto* data = static_cast<const uint8_t*>(w.data);
    const int columns = static_cast<int>(end - begin);
    const int padded = (columns + kStep - 1) / kStep * kStep;
    const int64_t first = row * w.cols() + begin;
    for (int i = 0; i < padded; ++i) {
      if (i >= columns) {
        codes[i] = 0;
      } else if (w.dtype == DType::int8) {
        codes[i] = data[first + i] ^ (linear_->kernel_->signed_codes ? 0x80 : 0);
      } else {
        const uint8_t pair = data[(first + i) / 2];
        codes[i] = (first + i) % 2 == 0 ? pair >> 4 : pair & 0xf;
      }
    }
    return padded;
  }

  void pack_int_row(int64_t row, int r, std::byte* panel) const {
    const LinearLayout& layout = linear_->layout_;
    const WeightStack::Row source = stack_.row(row);
    const Weight& w = *source.matrix;
    row = source.row;
    const int64_t rows = layout.panel_rows;
    std::byte* section = nullptr;
    std::byte* words = panel;  // of the whole panel; this row's are 4 * r on
    for (int64_t g = 0; g < layout.groups; ++g) {
      if (g % layout.section_groups == 0) {
        section = words;
        words += layout.codes_offset;
      }
      const int64_t i = row * layout.groups + g;
      pack_scale(w.scale[i], w.minimum[i], g % layout.section_groups * rows + r, section);
      const int64_t end = std::min((g + 1) * layout.group, layout.in);
      for (int64_t k = g * layout.group; k < end; k += kMaxBlock) {
        uint8_t codes[kMaxBlock];
        const int padded = read_codes(w, row, k, std::min(k + kMaxBlock, end), codes);
        for (int step = 0; step < padded; step += kStep) {
          pack_step(codes + step, r, words);
          words += rows * dtype_bits(w.dtype);
        }
      }
    }
  }

  // Eight codes of row r, see linear_layout.h.
  void pack_step(const uint8_t* codes, int r, std::byte* words) const {
    const int rows = linear_->layout_.panel_rows;
    if (linear_->kernel_->order == CodeOrder::row_pairs) {
      if (dtype() == DType::int8) {
        std::memcpy(words + r * kStep, codes, kStep);
      } else {
        std::byte* pair = words + r / 4 * 16 + r % 2 * kStep;
        const int shift = r % 4 < 2 ? 0 : 4;
        for (int j = 0; j < kStep; ++j) pair[j] |= std::byte{codes[j]} << shift;
      }
    } else if (dtype() == DType::int4) {
      uint8_t word[4];
      for (int j = 0; j < 4; ++j) word[j] = static_cast<uint8_t>(codes[j] | codes[4 + j] << 4);
      std::memcpy(words + r * 4, word, 4);
    } else {
      std::memcpy(words + r * 4, codes, 4);
      std::memcpy(words + (rows + r) * 4, codes + 4, 4);
    }
  }

  void pack_scale(float scale, float minimum, int64_t at, std::byte* section) const {
    const LinearLayout& layout = linear_->layout_;
    std::byte* zeros = section + layout.zeros_offset;
    const int offset = linear_->kernel_->signed_codes ? 128 : 0;
    if (layout.compact) {
      const uint16_t half = float_to_half(scale);
      const auto zero = static_cast<uint8_t>(zero_point(scale, minimum) - offset);
      std::memcpy(section + at * 2, &half, 2);
      std::memcpy(zeros + at, &zero, 1);
    } else {
      minimum = static_cast<float>(minimum + double{scale} * offset);
      std::memcpy(section + at * 4, &scale, 4);
      std::memcpy(zeros + at * 4, &minimum, 4);
    }
  }

  ThreadPool& pool_;
  WeightStack stack_;
  std::unique_ptr<CpuLinear> linear_;
};

std::unique_ptr<CpuLinear> pack_linear(ThreadPool& pool, Isa isa, WeightArena& arena,
                                       std::span<const Weight> matrices,
                                       std::span<const std::vector<float>> biases,
                                       ActivationType activation, bool gated) {
  return LinearPacker(pool, isa, matrices, biases, activation, gated).pack(arena);
}

}  // namespace slicellm::cpu
