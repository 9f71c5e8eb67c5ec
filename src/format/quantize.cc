#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "format/half.h"
#include "format/parallel.h"
#include "slicellm/error.h"
#include "slicellm/tensor.h"

namespace slicellm {
namespace {

constexpr float kMaxHalf = 65504.0f;
constexpr float kLeastHalf = 0x1p-24f;
constexpr int64_t kGrainElements = 1 << 18;  // about a millisecond of work for one thread

struct Range {
  float min = 0, max = 0;
  bool finite = true;
};

// Lanes instead of one running value, so that the compiler may use vector instructions without
// reordering float operations.
Range range_of(const float* x, int64_t count) {
  constexpr int kLanes = 8;
  float low[kLanes], high[kLanes], poison[kLanes] = {};
  std::fill(low, low + kLanes, x[0]);
  std::fill(high, high + kLanes, x[0]);
  auto visit = [&](int lane, float v) {
    low[lane] = v < low[lane] ? v : low[lane];
    high[lane] = v > high[lane] ? v : high[lane];
    poison[lane] += v - v;  // NaN once v is NaN or infinite
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) visit(lane, x[i + lane]);
  }
  for (; i < count; ++i) visit(0, x[i]);
  Range range{low[0], high[0], true};
  for (int lane = 0; lane < kLanes; ++lane) {
    range.min = std::min(range.min, low[lane]);
    range.max = std::max(range.max, high[lane]);
    range.finite = range.finite && poison[lane] == 0;
  }
  return range;
}

Error out_of_range(const std::string& name, float value, const DTypeSpec& to) {
  return Error(ErrorKind::unsupported, name, "a value of " + std::to_string(value),
               "values that " + to_string(to) + " can hold (use bfloat16 or float32)");
}

// The smallest float16 that is not below `value`; infinity beyond 65504.
float round_up_to_half(float value) {
  uint16_t half = float_to_half_bits(value);
  if (half_bits_to_float(half) < value) ++half;
  return half_bits_to_float(half);
}

struct CodeGrid {
  float scale = 0;
  float zero = 0;  // the code of 0
};

// A grid with a point at exactly `value`, a float16. The scale is as small as that of other rows of
// this size, since what integer arithmetic loses elsewhere is in proportion to it.
CodeGrid constant_grid(float value, int bits) {
  if (value == 0) return {kLeastHalf, 0};
  const float size = std::fabs(value);
  float code = static_cast<float>(1 << (bits - 1));
  while (round_up_to_half(size / code) * code != size) code /= 2;  // too small to divide so far
  return {size / code, value < 0 ? code : 0.0f};
}

// Rounding the scale up keeps the whole range within `levels` steps; placing the zero on a code
// then moves the ends by at most half a step, so no element is off by more than half a scale.
CodeGrid choose_grid(Range range, const std::string& name, const DTypeSpec& to) {
  const int levels = (1 << dtype_bits(to.type)) - 1;
  const float low = std::min(range.min, 0.0f), high = std::max(range.max, 0.0f);
  const float step = high / static_cast<float>(levels) - low / static_cast<float>(levels);
  const float scale = std::max(round_up_to_half(step), kLeastHalf);  // step may underflow to 0
  if (!(scale <= kMaxHalf)) throw out_of_range(name, high > -low ? high : low, to);
  return {scale, std::clamp(std::round(-low / scale), 0.0f, static_cast<float>(levels))};
}

void encode(const float* x, int64_t count, CodeGrid grid, int levels, uint8_t* codes) {
  const float top = static_cast<float>(levels);
  const float offset = grid.zero + 0.5f;
  for (int64_t i = 0; i < count; ++i) {
    float v = x[i] / grid.scale + offset;
    v = v > 0.0f ? v : 0.0f;
    v = v < top ? v : top;
    codes[i] = static_cast<uint8_t>(static_cast<int32_t>(v));
  }
}

// Writes `codes` as nibbles from flat element `first` on. A piece of work starts at an even
// element, so no byte is shared between threads.
void pack_nibbles(const uint8_t* codes, int64_t first, int64_t count, uint8_t* out) {
  if (count > 0 && first % 2 == 1) {
    out[first / 2] = static_cast<uint8_t>(out[first / 2] | *codes++);
    ++first, --count;
  }
  out += first / 2;
  for (int64_t i = 0; i < count / 2; ++i) {
    out[i] = static_cast<uint8_t>(codes[2 * i] << 4 | codes[2 * i + 1]);
  }
  if (count % 2 == 1) out[count / 2] = static_cast<uint8_t>(codes[count - 1] << 4);
}

void store_floats(const float* x, int64_t count, DType type, uint8_t* out) {
  if (type == DType::float32) {
    std::memcpy(out, x, static_cast<size_t>(4 * count));
    return;
  }
  auto* half = reinterpret_cast<uint16_t*>(out);  // our own, aligned buffer
  if (type == DType::float16) {
    for (int64_t i = 0; i < count; ++i) half[i] = float_to_half_bits(x[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) half[i] = float_to_bfloat16_bits(x[i]);
  }
}

Range checked_range(const Weight& w, const float* x, int64_t count) {
  const Range range = range_of(x, count);
  if (!range.finite) throw Error(ErrorKind::format, w.name, "NaN or infinity", "finite weights");
  return range;
}

void convert_floats(const Weight& w, const DTypeSpec& to, int64_t first, int64_t count,
                    uint8_t* out) {
  std::vector<float> x(static_cast<size_t>(count));
  decode(w, first, count, x.data());
  const Range range = checked_range(w, x.data(), count);
  // Beyond these the nearest float16 (bfloat16) is infinity.
  const float limit = to.type == DType::float16    ? 65520.0f
                      : to.type == DType::bfloat16 ? 0x1.ffp127f
                                                   : std::numeric_limits<float>::infinity();
  const float largest = std::max(range.max, -range.min);
  if (largest >= limit) throw out_of_range(w.name, largest, to);
  store_floats(x.data(), count, to.type, out + first * dtype_bits(to.type) / 8);
}

// Quantises one row or group in place: `x` may be overwritten.
CodeGrid quantize_group(const Weight& w, const DTypeSpec& to, float* x, int64_t count,
                        uint8_t* codes) {
  const int bits = dtype_bits(to.type);
  const Range range = checked_range(w, x, count);
  const float rounded = half_bits_to_float(float_to_half_bits(range.min));
  CodeGrid grid;
  if (range.min == range.max && std::fabs(rounded) <= kMaxHalf) {
    std::fill_n(x, count, rounded);
    grid = constant_grid(rounded, bits);
  } else {
    grid = choose_grid(range, w.name, to);
  }
  encode(x, count, grid, (1 << bits) - 1, codes);
  return grid;
}

void quantize_rows(const Weight& w, const DTypeSpec& to, int64_t begin, int64_t end, Weight& out,
                   uint8_t* data) {
  const int64_t cols = w.cols(), groups = out.groups();
  std::vector<float> x(static_cast<size_t>(cols));
  std::vector<uint8_t> codes(static_cast<size_t>(cols));
  for (int64_t row = begin; row < end; ++row) {
    decode(w, row * cols, cols, x.data());
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t col = g * out.group_size, count = std::min(out.group_size, cols - col);
      const CodeGrid grid = quantize_group(w, to, x.data() + col, count, codes.data() + col);
      const size_t at = static_cast<size_t>(row * groups + g);
      out.scale[at] = grid.scale;
      out.minimum[at] = 0.0f - grid.scale * grid.zero;
    }
    if (to.type == DType::int8) {
      std::memcpy(data + row * cols, codes.data(), codes.size());
    } else {
      pack_nibbles(codes.data(), row * cols, cols, data);
    }
  }
}

}  // namespace

Weight convert(const Weight& w, const DTypeSpec& to, int threads) {
  const int64_t group = to.group_size > 0 ? to.group_size : w.cols();
  if (w.dtype == to.type && (!is_quantized(to.type) || w.group_size == group)) return w;
  if (is_quantized(to.type) && w.shape.size() != 2) {
    throw Error(ErrorKind::unsupported, w.name,
                std::to_string(w.shape.size()) + " dimensions for " + to_string(to), "a matrix");
  }
  int64_t count = 1;
  for (int64_t dim : w.shape) count *= dim;

  Weight out;
  out.name = w.name;
  out.dtype = to.type;
  out.shape = w.shape;
  out.data_bytes = static_cast<size_t>((count * dtype_bits(to.type) + 7) / 8);
  auto buffer = std::make_shared_for_overwrite<uint8_t[]>(out.data_bytes);
  uint8_t* data = buffer.get();
  out.data = data;
  out.owner = buffer;
  if (!is_quantized(to.type)) {
    parallel_for(count, kGrainElements, threads, [&](int64_t begin, int64_t end) {
      convert_floats(w, to, begin, end - begin, data);
    });
    return out;
  }
  out.group_size = group;
  out.scale.resize(static_cast<size_t>(out.rows() * out.groups()));
  out.minimum.resize(out.scale.size());
  const int64_t row_grain = std::max<int64_t>(1, kGrainElements / w.cols() / 2) * 2;
  parallel_for(out.rows(), row_grain, threads, [&](int64_t begin, int64_t end) {
    quantize_rows(w, to, begin, end, out, data);
    release_rows(w, begin, end);
  });
  return out;
}

}  // namespace slicellm
