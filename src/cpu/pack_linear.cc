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

constexpr size_t kLine = 64;
// Packed between releases of what was read, so that no tensor is held twice.
constexpr size_t kSliceBytes = size_t{4} << 20;
constexpr int64_t kSectionGroups = 4;  // keeps sections aligned to their vectors

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

WeightKind kind_of(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return WeightKind::float32;
    case DType::float16:
      return WeightKind::float16;
    case DType::bfloat16:
      return WeightKind::bfloat16;
    case DType::int8:
      return WeightKind::int8;
    case DType::int4:
      return WeightKind::int4;
  }
  throw Error(ErrorKind::unsupported, "dtype", std::to_string(static_cast<int>(dtype)),
              "a dtype that this device can multiply");
}

bool is_half(float v) {
  return std::abs(half_to_float(float_to_half(v)) - v) <= 2e-7f * std::abs(v);
}

}  // namespace

class LinearPacker {
 public:
  LinearPacker(ThreadPool& pool, Isa isa, std::span<const Weight> matrices,
               std::span<const std::vector<float>> biases, ActivationType activation, bool gated)
      : pool_(pool), stack_(matrices, biases, gated) {
    linear_->gated_ = gated;
    linear_->out_ = stack_.rows();
    linear_->bias_ = stack_.bias();
    choose_layout(isa, activation);
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
    if (!linear_->gated_) return stack_.release(first * rows, last * rows);
    const int64_t inner = linear_->out_ / 2, end = std::min(last / 2 * rows, inner);
    stack_.release(first / 2 * rows, end);
    stack_.release(first / 2 * rows + inner, end + inner);
  }

  void choose_layout(Isa isa, ActivationType activation) {
    LinearLayout& layout = linear_->layout_;
    const LinearKernels& kernels = linear_kernels(isa);
    layout.kind = kind_of(dtype());
    layout.in = stack_.cols();
    const bool integer = is_quantized(dtype()) && activation != ActivationType::float32;
    linear_->kernel_ = integer ? &kernels.integer[dtype() == DType::int4]
                               : &kernels.exact[static_cast<int>(layout.kind)];
    layout.activation = linear_->kernel_->activation;
    layout.panel_rows = linear_->kernel_->panel_rows;
    layout.max_tokens = linear_->kernel_->max_tokens;
    const int64_t rows = layout.panel_rows;
    linear_->panels_ = linear_->gated_ ? 2 * ((linear_->out_ / 2 + rows - 1) / rows)
                                       : (linear_->out_ + rows - 1) / rows;
    if (!is_quantized(dtype())) {
      layout.padded_in = layout.in;
      layout.panel_bytes = static_cast<size_t>(layout.in * rows) * dtype_bits(dtype()) / 8;
      layout.token_bytes = static_cast<size_t>(layout.in) * sizeof(float);
      return;
    }
    cut_blocks();
    layout.compact = is_compact();
    const auto rows_size = static_cast<size_t>(rows);
    const auto section_groups = static_cast<size_t>(std::min(layout.groups, kSectionGroups));
    layout.section_groups = static_cast<int>(section_groups);
    layout.zeros_offset = section_groups * rows_size * (layout.compact ? 2 : 4);
    layout.codes_offset = round_up(
        layout.zeros_offset + section_groups * rows_size * (layout.compact ? 1 : 4), rows_size * 4);
    const auto sections =
        static_cast<size_t>((layout.groups + kSectionGroups - 1) / kSectionGroups);
    const auto codes = static_cast<size_t>(layout.padded_in) * rows_size * dtype_bits(dtype()) / 8;
    layout.panel_bytes = round_up(sections * layout.codes_offset + codes, kLine);
    const size_t code_bytes = layout.activation == ActivationKind::int8    ? 1
                              : layout.activation == ActivationKind::int16 ? 2
                                                                           : 4;
    layout.act_scales_offset = static_cast<size_t>(layout.padded_in) * code_bytes;
    layout.act_sums_offset = layout.act_scales_offset + static_cast<size_t>(layout.blocks) * 4;
    layout.token_bytes = layout.act_sums_offset + static_cast<size_t>(layout.blocks) * 4;
  }

  void cut_blocks() {
    LinearLayout& layout = linear_->layout_;
    layout.group = stack_.group_columns();
    layout.groups = stack_.groups();
    layout.blocks_per_group = (layout.group + kMaxBlock - 1) / kMaxBlock;
    for (int64_t begin = 0; begin < layout.in; begin += layout.group) {
      const int64_t end = std::min(begin + layout.group, layout.in);
      for (int64_t k = begin; k < end; k += kMaxBlock) {
        const int64_t steps = (std::min<int64_t>(end - k, kMaxBlock) + kStep - 1) / kStep;
        linear_->block_steps_.push_back(static_cast<uint8_t>(steps));
        layout.padded_in += steps * kStep;
      }
    }
    layout.blocks = static_cast<int64_t>(linear_->block_steps_.size());
    layout.block_steps = linear_->block_steps_.data();
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
    if (!linear_->gated_) return panel * rows + r < linear_->out_ ? panel * rows + r : -1;
    const int64_t inner = linear_->out_ / 2;
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
  std::unique_ptr<CpuLinear> linear_ = std::make_unique<CpuLinear>();
};

std::unique_ptr<CpuLinear> pack_linear(ThreadPool& pool, Isa isa, WeightArena& arena,
                                       std::span<const Weight> matrices,
                                       std::span<const std::vector<float>> biases,
                                       ActivationType activation, bool gated) {
  return LinearPacker(pool, isa, matrices, biases, activation, gated).pack(arena);
}

}  // namespace slicellm::cpu
