#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "format/byte_reader.h"
#include "slicellm/tensor.h"

// The tensor payloads that .flm files and the "fastllm" blobs of export directories share.
namespace slicellm {

// fastllm's data type codes that we read and write.
enum FastllmType : int32_t {
  kFastllmFloat32 = 0,
  kFastllmBfloat16 = 1,
  kFastllmInt8 = 3,
  kFastllmInt4 = 4,  // "int4 with zero", from 2023; decodes like kFastllmInt4NoZero
  kFastllmFloat16 = 7,
  kFastllmInt4NoZero = 8,
  kFastllmInt4Group = 9,
};

// What the two floats before each row or group mean.
enum class GridPair {
  min_max,    // the grid is derived again from the range, as fastllm's loader does
  min_scale,  // exact
};

// Where one tensor's bytes lie in a mapping, checked against its shape; nothing decoded yet.
struct TensorPayload {
  DType dtype = DType::float32;
  int64_t group_size = 0;          // int types: columns per scale
  std::span<const uint8_t> pairs;  // int types: two float32 per row or group
  GridPair pair_kind = GridPair::min_max;
  std::span<const uint8_t> data;
};

// Reads what follows a type code, for a tensor of `shape`, in a .flm (all kinds) or in a blob
// (`blob`: int kinds only, where codes 8 and 9 store scales). `name` names the tensor in errors.
// Throws Error(format | unsupported).
TensorPayload read_payload(ByteReader& reader, int32_t code, const std::vector<int64_t>& shape,
                           bool blob, const std::string& name);

// Number of elements of `shape`; every dimension must be from 1 to 2^31-1. Throws Error(format).
uint64_t element_count(const std::vector<int64_t>& shape, const std::string& name);

// The grid that fastllm derives in float32 from a stored range: w = minimum + scale * code.
struct Grid {
  float scale = 0;
  float minimum = 0;
};
Grid derive_grid(float min, float max, int bits);

// fastllm's code for a tensor of this type.
int32_t fastllm_type(const Weight& w);

// What follows a type code up to the data: axis, groups and pairs of int types; empty for floats.
// With GridPair::min_max the range is chosen so that derive_grid gives the weight's own grid again.
// Throws Error(unsupported) for a grid that no range gives (zero outside it or between two codes).
std::string payload_header(const Weight& w, bool blob);

// Builds the view of a tensor in a mapping, which `owner` holds; decodes the grids. Throws
// Error(format) for grids that are not finite.
Weight make_weight(const std::string& name, const std::vector<int64_t>& shape,
                   const TensorPayload& payload, std::shared_ptr<const void> owner);

}  // namespace slicellm
