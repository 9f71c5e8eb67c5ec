#include <bit>
#include <cmath>
#include <cstring>
#include <string>

#include "cuda/linear.h"
#include "format/half.h"
#include "format/parallel.h"
#include "format/weight_stack.h"
#include "slicellm/error.h"

namespace slicellm::cuda {
namespace {

constexpr float kHalfLimit = 65520.0f;  // from here on float16 rounds to infinity
constexpr int64_t kMaxSide = int64_t{1} << 30;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// One group's scale, zero and offset as the kernels use them, in float16 bits:
// w = (code - zero) * scale + offset.
struct Grid {
  uint16_t scale = 0, minus_zero = 0, offset = 0;  // minus_zero = -(1024 + zero)
};

Grid grid_of(float scale, float minimum) {
  Grid grid;
  grid.scale = float_to_half_bits(scale);
  int zero = scale == 0 ? -1 : zero_point(scale, minimum);
  if (zero < 0) {
    // What the nearest zero point leaves over, so that both parts are small.
    const float nearest = scale == 0 ? 0 : std::nearbyint(-minimum / scale);
    zero = nearest > 0 ? static_cast<int>(std::fmin(nearest, 255.0f)) : 0;
    const double offset = static_cast<double>(minimum) + static_cast<double>(scale) * zero;
    grid.offset = float_to_half_bits(static_cast<float>(offset));
  }
  grid.minus_zero = static_cast<uint16_t>(0xe400 | zero);
  return grid;
}

[[noreturn]] void throw_range(const Weight& w, float value) {
  throw Error(ErrorKind::unsupported, w.name.empty() ? "weight" : w.name,
              "a value of " + std::to_string(value),
              "values that float16 can hold (use bfloat16 weights)");
}

// Whether a scale keeps its precision in float16.
bool is_half_scale(float scale) {
  return std::abs(half_bits_to_float(float_to_half_bits(scale)) - scale) <=
         0x1p-11f * std::abs(scale);
}

class Packer {
 public:
  Packer(std::span<const Weight> matrices, std::span<const std::vector<float>> biases, bool gated,
         int threads)
      : stack_(matrices, biases, gated), bias_(stack_.bias()), threads_(threads) {
    if (stack_.rows() > kMaxSide || stack_.cols() > kMaxSide) {
      throw Error(ErrorKind::unsupported, stack_.name(),
                  std::to_string(stack_.rows()) + " x " + std::to_string(stack_.cols()),
                  "at most 2^30 rows and columns");
    }
    choose_layout(gated);
  }

  HostLinear pack() {
    const LinearLayout& layout = linear_.layout;
    linear_.data.resize(layout.bytes);
    parallel_for(layout.tiles, 1, threads_, [&](int64_t begin, int64_t end) {
      for (int64_t tile = begin; tile < end; ++tile) pack_tile(tile);
    });
    return std::move(linear_);
  }

 private:
  void choose_layout(bool gated) {
    LinearLayout& layout = linear_.layout;
    layout.gated = gated;
    layout.bias = !bias_.empty();
    layout.in = static_cast<int32_t>(stack_.cols());
    layout.out = static_cast<int32_t>(stack_.rows());
    layout.units = static_cast<int32_t>(ceil_div(layout.in, kUnitColumns));
    layout.tiles = static_cast<int32_t>(gated ? ceil_div(layout.out / 2, kTileRows / 2)
                                              : ceil_div(layout.out, kTileRows));
    choose_slices();
    choose_kind();
    size_t bytes = static_cast<size_t>(layout.tiles) * layout.units * kTileRows * kUnitColumns *
                   bits_of(layout.kind) / 8;
    const auto append = [&](size_t size) {
      const size_t at = (bytes + 255) / 256 * 256;
      bytes = at + size;
      return at;
    };
    const size_t words = static_cast<size_t>(layout.tiles) * layout.groups * kTileRows * 4;
    if (layout.groups > 0) layout.scales_at = append(words);
    if (layout.offsets) layout.offsets_at = append(words);
    if (layout.bias) layout.bias_at = append(static_cast<size_t>(layout.tiles) * kTileRows * 4);
    layout.bytes = bytes;
  }

  // Enough warps, one for each slice of a tile, to keep a large GPU's memory busy, but no slices
  // without work.
  void choose_slices() {
    LinearLayout& layout = linear_.layout;
    layout.slices = 1;
    while (layout.slices < kMaxSlices && int64_t{layout.tiles} * layout.slices < 2048 &&
           layout.units >= layout.slices * 4) {
      layout.slices *= 2;
    }
    layout.slice_units = static_cast<int32_t>(ceil_div(layout.units, layout.slices));
  }

  void choose_kind() {
    LinearLayout& layout = linear_.layout;
    layout.kind = stack_.dtype() == DType::bfloat16 ? WeightKind::bfloat16 : WeightKind::float16;
    if (!is_quantized(stack_.dtype()) || !has_native_groups()) return;
    bool native = true, offsets = false;
    for (const Weight& w : stack_.matrices()) {
      const auto top = static_cast<float>((1 << dtype_bits(w.dtype)) - 1);
      for (size_t i = 0; i < w.scale.size(); ++i) {
        const float least = w.minimum[i], most = w.minimum[i] + w.scale[i] * top;
        if (!(std::abs(least) < kHalfLimit)) throw_range(w, least);
        if (!(std::abs(most) < kHalfLimit)) throw_range(w, most);
        native = native && is_half_scale(w.scale[i]);
        offsets = offsets || grid_of(w.scale[i], w.minimum[i]).offset != 0;
      }
    }
    if (!native) return;
    layout.kind = stack_.dtype() == DType::int4 ? WeightKind::int4 : WeightKind::int8;
    layout.offsets = offsets;
    const int64_t blocks = int64_t{layout.units} * kBlocksPerUnit;
    const int64_t group_blocks =
        stack_.groups() == 1 ? blocks : stack_.group_columns() / kBlockColumns;
    layout.group_shift = std::bit_width(static_cast<uint64_t>(group_blocks - 1));
    layout.groups = static_cast<int32_t>(ceil_div(blocks, int64_t{1} << layout.group_shift));
  }

  bool has_native_groups() const {
    const auto size = static_cast<uint64_t>(stack_.group_columns());
    return stack_.groups() == 1 || (size % kBlockColumns == 0 && std::has_single_bit(size));
  }

  // The stacked row that sits at row r of a tile; -1 for padding.
  int64_t source_row(int64_t tile, int r) const {
    const LinearLayout& layout = linear_.layout;
    if (!layout.gated) {
      const int64_t row = tile * kTileRows + r;
      return row < layout.out ? row : -1;
    }
    const int64_t inner = layout.out / 2, row = tile * 8 + r % 8;
    return row < inner ? row + r / 8 * inner : -1;
  }

  void pack_tile(int64_t tile) {
    const LinearLayout& layout = linear_.layout;
    const int64_t columns = layout.input_width();
    std::vector<uint16_t> halves(layout.groups == 0 ? columns : 0);
    std::vector<uint8_t> codes(layout.groups == 0 ? 0 : columns);
    std::byte* unit = linear_.data.data() + static_cast<size_t>(tile) * layout.units * kTileRows *
                                                kUnitColumns * bits_of(layout.kind) / 8;
    for (int r = 0; r < kTileRows; ++r) {
      const int64_t row = source_row(tile, r);
      if (row < 0) continue;
      if (layout.bias) {
        std::memcpy(linear_.data.data() + layout.bias_at + (tile * kTileRows + r) * 4,
                    &bias_[static_cast<size_t>(row)], 4);
      }
      const WeightStack::Row source = stack_.row(row);
      if (layout.groups == 0) {
        read_halves(source, halves.data());
        pack_halves(halves.data(), r, unit);
      } else {
        pack_scales(source, tile, r);
        read_codes(source, codes.data());
        pack_codes(codes.data(), r, unit);
      }
    }
  }

  void read_halves(const WeightStack::Row& source, uint16_t* to) const {
    const Weight& w = *source.matrix;
    const int64_t in = linear_.layout.in;
    if (dtype_bits(w.dtype) == 16) {
      std::memcpy(to, static_cast<const uint16_t*>(w.data) + source.row * in,
                  static_cast<size_t>(in) * 2);
      return;
    }
    std::vector<float> values(static_cast<size_t>(in));
    decode(w, source.row * in, in, values.data());
    for (int64_t k = 0; k < in; ++k) {
      if (!(std::abs(values[k]) < kHalfLimit)) throw_range(w, values[k]);
      to[k] = float_to_half_bits(values[k]);
    }
  }

  void read_codes(const WeightStack::Row& source, uint8_t* to) const {
    const Weight& w = *source.matrix;
    const auto* data = static_cast<const uint8_t*>(w.data);
    const int64_t first = source.row * linear_.layout.in;
    for (int64_t k = 0; k < linear_.layout.in; ++k) {
      const int64_t i = first + k;
      if (w.dtype == DType::int8) {
        to[k] = data[i];
      } else {
        to[k] = i % 2 == 0 ? data[i / 2] >> 4 : data[i / 2] & 0xf;
      }
    }
  }

  // See linear_layout.h for where everything lies. A lane's 8 columns of a block are `to`.
  void pack_halves(const uint16_t* row, int r, std::byte* tile) const {
    for (int64_t k = 0; k < linear_.layout.input_width(); k += 8) {
      const int64_t block = k / kBlockColumns;
      const int lane = r % 8 * 4 + static_cast<int>(k % kBlockColumns / 8);
      for (int pair = 0; pair < 4; ++pair) {
        const int step = pair / 2, word = pair % 2 * 2 + r / 8;
        std::memcpy(tile + ((block * 2 + step) * 32 + lane) * 16 + word * 4, row + k + pair * 2, 4);
      }
    }
  }

  void pack_codes(const uint8_t* row, int r, std::byte* tile) const {
    for (int64_t k = 0; k < linear_.layout.input_width(); k += 8) {
      const int64_t block = k / kBlockColumns;
      const int lane = r % 8 * 4 + static_cast<int>(k % kBlockColumns / 8);
      if (linear_.layout.kind == WeightKind::int8) {
        std::memcpy(tile + (block * 32 + lane) * 16 + r / 8 * 8, row + k, 8);
        continue;
      }
      uint32_t word = 0;
      for (int i = 0; i < 8; ++i) {
        word |= static_cast<uint32_t>(row[k + i]) << 4 * (i / 2 + i % 2 * 4);
      }
      std::memcpy(tile + (block / 2 * 32 + lane) * 16 + (block % 2 * 2 + r / 8) * 4, &word, 4);
    }
  }

  void pack_scales(const WeightStack::Row& source, int64_t tile, int r) {
    const LinearLayout& layout = linear_.layout;
    for (int64_t group = 0; group < stack_.groups(); ++group) {
      const auto i = static_cast<size_t>(source.row * stack_.groups() + group);
      const Grid grid = grid_of(source.matrix->scale[i], source.matrix->minimum[i]);
      const int64_t at = ((tile * layout.groups + group) * 8 + r % 8) * 8 + r / 8 * 4;
      std::byte* scale = linear_.data.data() + layout.scales_at + at;
      std::memcpy(scale, &grid.scale, 2);
      std::memcpy(scale + 2, &grid.minus_zero, 2);
      if (layout.offsets) {
        std::memcpy(linear_.data.data() + layout.offsets_at + at, &grid.offset, 2);
      }
    }
  }

  WeightStack stack_;
  std::vector<float> bias_;
  int threads_;
  HostLinear linear_;
};

}  // namespace

HostLinear pack_linear(std::span<const Weight> matrices, std::span<const std::vector<float>> biases,
                       bool gated, int threads) {
  return Packer(matrices, biases, gated, threads).pack();
}

}  // namespace slicellm::cuda
