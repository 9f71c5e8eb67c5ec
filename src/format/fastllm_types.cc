#include "format/fastllm_types.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "slicellm/error.h"
#include "slicellm/format.h"

namespace slicellm {
namespace {

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
  return w;
}

}  // namespace slicellm
