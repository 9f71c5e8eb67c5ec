#include <algorithm>
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

}  // namespace

struct LinearPacker::Tile {
  std::byte *weights, *scales, *offsets, *bias;
};

LinearPacker::LinearPacker(std::span<const Weight> matrices,
                           std::span<const std::vector<float>> biases, bool gated, int threads)
    : stack_(matrices, biases, gated), bias_(stack_.bias()), threads_(threads) {
  if (stack_.rows() > kMaxSide || stack_.cols() > kMaxSide) {
    throw Error(ErrorKind::unsupported, stack_.name(),
                std::to_string(stack_.rows()) + " x " + std::to_string(stack_.cols()),
                "at most 2^30 rows and columns");
  }
  layout_.gated = gated;
  layout_.bias = !bias_.empty();
  layout_.in = static_cast<int32_t>(stack_.cols());
  layout_.out = static_cast<int32_t>(stack_.rows());
  layout_.units = static_cast<int32_t>(ceil_div(layout_.in, kUnitColumns));
  layout_.tiles = static_cast<int32_t>(gated ? ceil_div(layout_.out / 2, kTileRows / 2)
                                             : ceil_div(layout_.out, kTileRows));
  choose_slices();
  choose_kind();
  size_t* const places[] = {nullptr, &layout_.scales_at, &layout_.offsets_at, &layout_.bias_at};
  const LinearParts sizes = parts();
  for (size_t p = 0; p < sizes.size(); ++p) {
    if (sizes[p].tile_bytes == 0) continue;
    const size_t at = (layout_.bytes + 255) / 256 * 256;
    if (places[p] != nullptr) *places[p] = at;
    layout_.bytes = at + sizes[p].tile_bytes * static_cast<size_t>(layout_.tiles);
  }
}

LinearParts LinearPacker::parts() const {
  const size_t weights =
      static_cast<size_t>(layout_.units) * kTileRows * kUnitColumns * bits_of(layout_.kind) / 8;
  const size_t words = static_cast<size_t>(layout_.groups) * kTileRows * 4;
  return {{{0, weights},
           {layout_.scales_at, words},
           {layout_.offsets_at, layout_.offsets ? words : 0},
           {layout_.bias_at, layout_.bias ? size_t{kTileRows} * 4 : 0}}};
}

void LinearPacker::pack(int64_t begin, int64_t end, const std::array<std::byte*, 4>& to) const {
  const LinearParts sizes = parts();
  parallel_for(end - begin, 1, threads_, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const auto place = [&](size_t p) {
        return sizes[p].tile_bytes == 0 ? nullptr
                                        : to[p] + static_cast<size_t>(i) * sizes[p].tile_bytes;
      };
      pack_tile(begin + i, {place(0), place(1), place(2), place(3)});
    }
  });
  release(begin, end);
}

// Enough warps, one for each slice of a tile, to keep a large GPU's memory busy, but no slices
// without work.
void LinearPacker::choose_slices() {
  layout_.slices = 1;
  while (layout_.slices < kMaxSlices && int64_t{layout_.tiles} * layout_.slices < 2048 &&
         layout_.units >= layout_.slices * 4) {
    layout_.slices *= 2;
  }
  layout_.slice_units = static_cast<int32_t>(ceil_div(layout_.units, layout_.slices));
}

void LinearPacker::choose_kind() {
  layout_.kind = stack_.dtype() == DType::bfloat16 ? WeightKind::bfloat16 : WeightKind::float16;
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
  layout_.kind = stack_.dtype() == DType::int4 ? WeightKind::int4 : WeightKind::int8;
  layout_.offsets = offsets;
  const int64_t blocks = int64_t{layout_.units} * kBlocksPerUnit;
  const int64_t group_blocks =
      stack_.groups() == 1 ? blocks : stack_.group_columns() / kBlockColumns;
  layout_.group_shift = std::bit_width(static_cast<uint64_t>(group_blocks - 1));
  layout_.groups = static_cast<int32_t>(ceil_div(blocks, int64_t{1} << layout_.group_shift));
}

bool LinearPacker::has_native_groups() const {
  const auto size = static_cast<uint64_t>(stack_.group_columns());
  return stack_.groups() == 1 || (size % kBlockColumns == 0 && std::has_single_bit(size));
}

// The stacked row that sits at row r of a tile; -1 for padding.
int64_t LinearPacker::source_row(int64_t tile, int r) const {
  if (!layout_.gated) {
    const int64_t row = tile * kTileRows + r;
    return row < layout_.out ? row : -1;
  }
  const int64_t inner = layout_.out / 2, row = tile * 8 + r % 8;
  return row < inner ? row + r / 8 * inner : -1;
}

void LinearPacker::pack_tile(int64_t tile, const Tile& to) const {
  const LinearParts sizes = parts();
  const int64_t columns = layout_.input_width();
  std::vector<uint16_t> halves(layout_.groups == 0 ? columns : 0);
  std::vector<uint8_t> codes(layout_.groups == 0 ? 0 : columns);
  // Groups and rows beyond the matrix are zero.
  if (source_row(tile, kTileRows - 1) < 0) std::memset(to.weights, 0, sizes[0].tile_bytes);
  if (layout_.groups > 0) std::memset(to.scales, 0, sizes[1].tile_bytes);
  if (layout_.offsets) std::memset(to.offsets, 0, sizes[2].tile_bytes);
  if (layout_.bias) std::memset(to.bias, 0, sizes[3].tile_bytes);
  for (int r = 0; r < kTileRows; ++r) {
    const int64_t row = source_row(tile, r);
    if (row < 0) continue;
    if (layout_.bias) std::memcpy(to.bias + r * 4, &bias_[static_cast<size_t>(row)], 4);
    const WeightStack::Row source = stack_.row(row);
    if (layout_.groups == 0) {
      read_halves(source, halves.data());
      pack_halves(halves.data(), r, to.weights);
    } else {
      pack_scales(source, r, to);
      read_codes(source, codes.data());
      pack_codes(codes.data(), r, to.weights);
    }
  }
}

void LinearPacker::read_halves(const WeightStack::Row& source, uint16_t* to) const {
  const Weight& w = *source.matrix;
  const int64_t in = layout_.in;
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

void LinearPacker::read_codes(const WeightStack::Row& source, uint8_t* to) const {
  const Weight& w = *source.matrix;
  const auto* data = static_cast<const uint8_t*>(w.data);
  const int64_t first = source.row * layout_.in;
  for (int64_t k = 0; k < layout_.in; ++k) {
    const int64_t i = first + k;
    if (w.dtype == DType::int8) {
      to[k] = data[i];
    } else {
      to[k] = i % 2 == 0 ? data[i / 2] >> 4 : data[i / 2] & 0xf;
    }
  }
}

// See linear_layout_.h for where everything lies. A lane's 8 columns of a block are `to`.
void LinearPacker::pack_halves(const uint16_t* row, int r, std::byte* tile) const {
  for (int64_t k = 0; k < layout_.input_width(); k += 8) {
    const int64_t block = k / kBlockColumns;
    const int lane = r % 8 * 4 + static_cast<int>(k % kBlockColumns / 8);
    for (int pair = 0; pair < 4; ++pair) {
      const int step = pair / 2, word = pair % 2 * 2 + r / 8;
      std::memcpy(tile + ((block * 2 + step) * 32 + lane) * 16 + word * 4, row + k + pair * 2, 4);
    }
  }
}

void LinearPacker::pack_codes(const uint8_t* row, int r, std::byte* tile) const {
  for (int64_t k = 0; k < layout_.input_width(); k += 8) {
    const int64_t block = k / kBlockColumns;
    const int lane = r % 8 * 4 + static_cast<int>(k % kBlockColumns / 8);
    if (layout_.kind == WeightKind::int8) {
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

void LinearPacker::pack_scales(const WeightStack::Row& source, int r, const Tile& to) const {
  for (int64_t group = 0; group < stack_.groups(); ++group) {
    const auto i = static_cast<size_t>(source.row * stack_.groups() + group);
    const Grid grid = grid_of(source.matrix->scale[i], source.matrix->minimum[i]);
    const int64_t at = (group * 8 + r % 8) * 8 + r / 8 * 4;
    std::memcpy(to.scales + at, &grid.scale, 2);
    std::memcpy(to.scales + at + 2, &grid.minus_zero, 2);
    if (layout_.offsets) std::memcpy(to.offsets + at, &grid.offset, 2);
  }
}

void LinearPacker::release(int64_t begin, int64_t end) const {
  const int64_t rows = layout_.gated ? kTileRows / 2 : kTileRows;
  const int64_t all = layout_.gated ? layout_.out / 2 : layout_.out;
  const int64_t first = begin * rows, last = std::min(end * rows, all);
  stack_.release(first, last);
  if (layout_.gated) stack_.release(first + all, last + all);
}

}  // namespace slicellm::cuda
