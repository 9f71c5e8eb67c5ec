#include "format/fastllm_types.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "format/mapped_file.h"
#include "slicellm/error.h"
#include "slicellm/format.h"

namespace slicellm {
namespace {

constexpr float kTinyScale = 0x1p-100f;  // 15 of it is nothing beside any weight
constexpr float kGridTolerance = 4e-7f;  // a few roundings of float32, relative to the range

Error unknown_type(int32_t code, const std::string& name) {
  // Types that fastllm defines; anything else is a damaged file.
  const bool foreign = code == 2 || code == 5 || code == 6 || (code >= 10 && code <= 14) ||
                       code == 100 || (code >= 1000 && code < 20000);
  return Error(foreign ? ErrorKind::unsupported : ErrorKind::format, name + " data type",
               std::to_string(code),
               "0 (float32), 1 (bfloat16), 7 (float16), 3 (int8), 4 or 8 (int4) or 9 (int4 group)");
}

void read_grid_layout(ByteReader& reader, int32_t code, const std::vector<int64_t>& shape,
                      const std::string& name, TensorPayload& payload) {
  const int32_t axis = reader.read_i32(name + " axis");
  if (axis != 0 || shape.size() != 2) {
    throw Error(axis == -1 || axis == 0 ? ErrorKind::unsupported : ErrorKind::format,
                name + " axis",
                std::to_string(axis) + " of " + std::to_string(shape.size()) + " dimensions",
                "axis 0 of a matrix");
  }
  const int64_t cols = shape[1];
  int64_t groups = 1;
  payload.group_size = cols;
  if (code == kFastllmInt4Group) {
    groups = reader.read_i32(name + " groups");
    payload.group_size = reader.read_i32(name + " group size");
    if (payload.group_size < 1) {
      throw Error(ErrorKind::format, name + " group size", std::to_string(payload.group_size),
                  "a number above 0");
    }
    const int64_t expected = (cols + payload.group_size - 1) / payload.group_size;
    if (groups != expected) {
      throw Error(ErrorKind::format, name + " groups", std::to_string(groups),
                  std::to_string(expected) + " groups of " + std::to_string(payload.group_size) +
                      " for " + std::to_string(cols) + " columns");
    }
  }
  const uint64_t pairs =
      checked_mul(static_cast<uint64_t>(shape[0]), static_cast<uint64_t>(groups), name + " scales");
  payload.pairs =
      reader.take(checked_mul(pairs, 2 * sizeof(float), name + " scales"), name + " scales");
}

// The range from which derive_grid makes grid `i` of the weight.
std::pair<float, float> range_of_grid(const Weight& w, size_t i) {
  const int bits = dtype_bits(w.dtype);
  const float levels = static_cast<float>((1 << bits) - 1);
  const float scale = w.scale[i], minimum = w.minimum[i];
  // All codes mean zero. A range of zero would make fastllm divide by it.
  if (scale == 0 && minimum == 0) return {0.0f, levels * kTinyScale};

  // The reader divides the width of the range by `levels`; the width that gives this very scale
  // may be a neighbour of the rounded product. The low end only has to round to the same code.
  const float width = levels * scale;
  const float infinity = std::numeric_limits<float>::infinity();
  std::pair<float, float> nearest;
  float least = infinity;
  for (const float candidate :
       {width, std::nextafter(width, 0.0f), std::nextafter(width, infinity)}) {
    const float high = std::max(minimum + candidate, 0.0f);
    const float low = high - candidate;
    const Grid grid = derive_grid(low, high, bits);
    const float off = std::fabs(grid.scale - scale) + std::fabs(grid.minimum - minimum);
    if (off < least) least = off, nearest = {low, high};
  }
  if (!(least <= kGridTolerance * levels * scale)) {
    throw Error(ErrorKind::unsupported, w.name + " scales",
                "minimum " + std::to_string(minimum) + " with scale " + std::to_string(scale),
                "a minimum that is minus a code times the scale");
  }
  return nearest;
}

}  // namespace

uint64_t element_count(const std::vector<int64_t>& shape, const std::string& name) {
  uint64_t count = 1;
  for (int64_t dim : shape) {
    if (dim < 1 || dim > std::numeric_limits<int32_t>::max()) {
      throw Error(ErrorKind::format, name + " shape", std::to_string(dim),
                  "dimensions from 1 to 2^31-1");
    }
    count = checked_mul(count, static_cast<uint64_t>(dim), name + " shape");
  }
  // Room for the byte count of any element type, and for signed 64-bit indices.
  checked_mul(count, 16, name + " shape");
  return count;
}

TensorPayload read_payload(ByteReader& reader, int32_t code, const std::vector<int64_t>& shape,
                           bool blob, const std::string& name) {
  const uint64_t count = element_count(shape, name);
  TensorPayload payload;
  uint64_t bytes = 0;
  switch (code) {
    case kFastllmFloat32:
      payload.dtype = DType::float32, bytes = count * 4;
      break;
    case kFastllmBfloat16:
      payload.dtype = DType::bfloat16, bytes = count * 2;
      break;
    case kFastllmFloat16:
      payload.dtype = DType::float16, bytes = count * 2;
      break;
    case kFastllmInt8:
      payload.dtype = DType::int8, bytes = count;
      break;
    case kFastllmInt4:
    case kFastllmInt4NoZero:
    case kFastllmInt4Group:
      payload.dtype = DType::int4, bytes = (count + 1) / 2;
      break;
    default:
      throw unknown_type(code, name);
  }
  if (is_quantized(payload.dtype)) {
    const bool exact = blob && (code == kFastllmInt4NoZero || code == kFastllmInt4Group);
    payload.pair_kind = exact ? GridPair::min_scale : GridPair::min_max;
    read_grid_layout(reader, code, shape, name, payload);
  } else if (blob) {
    throw Error(ErrorKind::unsupported, name + " data type", std::to_string(code),
                "3, 4, 8 or 9 inside a \"fastllm\" tensor");
  }
  payload.data = reader.take(bytes, name + " data");
  return payload;
}

Grid derive_grid(float min, float max, int bits) {
  const float levels = static_cast<float>((1 << bits) - 1);
  min = std::min(min, 0.0f);
  max = std::max(max, 0.0f);
  const float scale = (max - min) / levels;
  if (!(scale > 0)) return {0, 0};  // a row of zeros: the division below would give NaN
  const float zero = std::clamp(std::round(0.0f - min / scale), 0.0f, levels);
  return {scale, 0.0f - scale * zero};
}

int32_t fastllm_type(const Weight& w) {
  switch (w.dtype) {
    case DType::float32:
      return kFastllmFloat32;
    case DType::float16:
      return kFastllmFloat16;
    case DType::bfloat16:
      return kFastllmBfloat16;
    case DType::int8:
      return kFastllmInt8;
    case DType::int4:
      break;
  }
  return w.group_size == w.cols() ? kFastllmInt4NoZero : kFastllmInt4Group;
}

std::string payload_header(const Weight& w, bool blob) {
  std::string out;
  auto put = [&out](auto value) { out.append(reinterpret_cast<const char*>(&value), 4); };
  if (!is_quantized(w.dtype)) return out;
  put(int32_t{0});  // axis
  if (fastllm_type(w) == kFastllmInt4Group) {
    put(static_cast<int32_t>(w.groups()));
    put(static_cast<int32_t>(w.group_size));
  }
  out.reserve(out.size() + w.scale.size() * 8);
  for (size_t i = 0; i < w.scale.size(); ++i) {
    if (blob && w.dtype == DType::int4) {
      put(w.minimum[i]);
      put(w.scale[i]);
    } else {
      const auto [low, high] = range_of_grid(w, i);
      put(low);
      put(high);
    }
  }
  return out;
}

Weight make_weight(const std::string& name, const std::vector<int64_t>& shape,
                   const TensorPayload& payload, std::shared_ptr<const void> owner) {
  Weight w;
  w.name = name;
  w.dtype = payload.dtype;
  w.shape = shape;
  w.group_size = payload.group_size;
  w.data = payload.data.data();
  w.data_bytes = payload.data.size();
  w.owner = std::move(owner);
  w.mapped = true;
  if (!is_quantized(w.dtype)) return w;

  const size_t count = payload.pairs.size() / (2 * sizeof(float));
  w.scale.resize(count);
  w.minimum.resize(count);
  for (size_t i = 0; i < count; ++i) {
    float pair[2];
    std::memcpy(pair, payload.pairs.data() + i * sizeof(pair), sizeof(pair));
    Grid grid{pair[1], pair[0]};
    if (payload.pair_kind == GridPair::min_max) {
      // torch2flm divides 0 by 0 for a row of zeros and stores (NaN, 0).
      if (std::isnan(pair[0]) && pair[1] == 0) pair[0] = 0;
      grid = derive_grid(pair[0], pair[1], dtype_bits(w.dtype));
    }
    if (!std::isfinite(pair[0]) || !std::isfinite(pair[1]) || !std::isfinite(grid.scale) ||
        !std::isfinite(grid.minimum)) {
      throw Error(ErrorKind::format, name + " scales",
                  std::to_string(pair[0]) + " and " + std::to_string(pair[1]) + " at index " +
                      std::to_string(i),
                  "finite numbers");
    }
    w.scale[i] = grid.scale;
    w.minimum[i] = grid.minimum;
  }
  release_pages(payload.pairs);
  return w;
}

}  // namespace slicellm
