#include "format/safetensors.h"

#include <algorithm>
#include <array>

#include "format/byte_reader.h"
#include "format/json.h"
#include "slicellm/error.h"
#include "slicellm/format.h"

namespace slicellm {
namespace {

struct Extent {
  uint64_t begin = 0, end = 0;
  SafetensorsFile::Tensor tensor;
};

struct DtypeSize {
  std::string_view name;
  uint64_t bytes;
};
constexpr std::array<DtypeSize, 15> kDtypeSizes = {{
    {"F32", 4},
    {"F16", 2},
    {"BF16", 2},
    {"F64", 8},
    {"I64", 8},
    {"I32", 4},
    {"I16", 2},
    {"I8", 1},
    {"U64", 8},
    {"U32", 4},
    {"U16", 2},
    {"U8", 1},
    {"F8_E4M3", 1},
    {"F8_E5M2", 1},
    {"BOOL", 1},
}};

// Data of a tensor of a plain dtype must be exactly as long as its shape says.
void check_plain_size(const SafetensorsFile::Tensor& tensor, uint64_t count, uint64_t bytes) {
  for (const DtypeSize& size : kDtypeSizes) {
    if (size.name != tensor.dtype) continue;
    const uint64_t expected = checked_mul(count, size.bytes, tensor.name + " size");
    if (bytes != expected) {
      throw Error(ErrorKind::format, tensor.name + " data_offsets",
                  std::to_string(bytes) + " bytes",
                  std::to_string(expected) + " bytes for its dtype and shape");
    }
    return;
  }
  throw Error(ErrorKind::unsupported, tensor.name + " dtype", shown(tensor.dtype),
              "F32, F16, BF16 or \"fastllm\"");
}

Extent read_entry(const JsonMember& entry) {
  Extent extent;
  SafetensorsFile::Tensor& tensor = extent.tensor;
  tensor.name = entry.key;
  tensor.dtype = entry.value.require("dtype", tensor.name).as_string(tensor.name + " dtype");
  for (const JsonValue& dim :
       entry.value.require("shape", tensor.name).as_array(tensor.name + " shape")) {
    const uint64_t size = dim.as_uint(tensor.name + " shape");
    // Beyond int64 it would turn negative; element_count says what is allowed.
    tensor.shape.push_back(size <= INT64_MAX ? static_cast<int64_t>(size) : INT64_MAX);
  }
  if (tensor.shape.size() > 8) {  // as in a .flm
    throw Error(ErrorKind::format, tensor.name + " shape",
                std::to_string(tensor.shape.size()) + " dimensions", "at most 8");
  }
  if (tensor.shape.empty()) tensor.shape.push_back(1);  // a single number
  const auto& offsets =
      entry.value.require("data_offsets", tensor.name).as_array(tensor.name + " data_offsets");
  if (offsets.size() != 2) {
    throw Error(ErrorKind::format, tensor.name + " data_offsets",
                std::to_string(offsets.size()) + " numbers", "begin and end");
  }
  extent.begin = offsets[0].as_uint(tensor.name + " data_offsets");
  extent.end = offsets[1].as_uint(tensor.name + " data_offsets");
  if (extent.end < extent.begin) {
    throw Error(ErrorKind::format, tensor.name + " data_offsets",
                std::to_string(extent.begin) + " to " + std::to_string(extent.end),
                "an end that is not before the begin");
  }
  return extent;
}

int32_t float_code(std::string_view dtype) {
  if (dtype == "F32") return kFastllmFloat32;
  if (dtype == "F16") return kFastllmFloat16;
  if (dtype == "BF16") return kFastllmBfloat16;
  return -1;
}

void read_blob(ByteReader& reader, SafetensorsFile::Tensor& tensor) {
  const int32_t version = reader.read_i32(tensor.name + " blob version");
  if (version != 1) {
    throw Error(version == 2 ? ErrorKind::unsupported : ErrorKind::format,
                tensor.name + " blob version", std::to_string(version), "1");
  }
  const int32_t code = reader.read_i32(tensor.name + " data type");
  tensor.payload = read_payload(reader, code, tensor.shape, /*blob=*/true, tensor.name);
  if (reader.remaining() > 0) {
    throw Error(ErrorKind::format, tensor.name + " data",
                std::to_string(reader.remaining()) + " bytes too many", "none");
  }
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::string& path) : file_(MappedFile::open(path)) {
  ByteReader reader(file_->bytes());
  const auto length_bytes = reader.take(8, "header length");
  uint64_t length = 0;
  std::memcpy(&length, length_bytes.data(), sizeof(length));
  if (length > kMaxSafetensorsHeader || length > reader.remaining()) {
    throw Error(ErrorKind::format, "header length", std::to_string(length),
                "at most " + std::to_string(std::min(kMaxSafetensorsHeader, reader.remaining())));
  }
  const auto header_bytes = reader.take(length, "header");
  const JsonValue header = parse_json(
      {reinterpret_cast<const char*>(header_bytes.data()), header_bytes.size()}, "header");

  std::vector<Extent> extents;
  for (const JsonMember& entry : header.as_object("header")) {
    if (entry.key != "__metadata__") extents.push_back(read_entry(entry));
  }
  std::sort(extents.begin(), extents.end(), [](const Extent& a, const Extent& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
  });
  uint64_t position = 0;
  tensors_.reserve(extents.size());
  for (Extent& extent : extents) {
    Tensor& tensor = extent.tensor;
    if (extent.begin != position) {
      throw Error(ErrorKind::format, tensor.name + " data_offsets", std::to_string(extent.begin),
                  std::to_string(position) + ", the end of the tensor before it");
    }
    position = extent.end;
    const uint64_t bytes = extent.end - extent.begin;
    ByteReader data(reader.take(bytes, tensor.name + " data"));
    const uint64_t count = element_count(tensor.shape, tensor.name);
    if (tensor.dtype == "fastllm") {
      read_blob(data, tensor);
      tensor.readable = true;
    } else {
      check_plain_size(tensor, count, bytes);
      const int32_t code = float_code(tensor.dtype);
      tensor.readable = code >= 0;
      if (tensor.readable) {
        tensor.payload = read_payload(data, code, tensor.shape, /*blob=*/false, tensor.name);
      }
    }
    tensors_.push_back(std::move(tensor));
  }
  if (reader.remaining() > 0) {
    throw Error(ErrorKind::format, "end of file",
                std::to_string(reader.remaining()) + " bytes after the last tensor", "none");
  }
}

bool SafetensorsFile::has_blobs() const {
  return std::any_of(tensors_.begin(), tensors_.end(),
                     [](const Tensor& tensor) { return tensor.dtype == "fastllm"; });
}

Weight SafetensorsFile::weight(const Tensor& tensor) const {
  if (!tensor.readable) {
    throw Error(ErrorKind::unsupported, tensor.name + " dtype", shown(tensor.dtype),
                "F32, F16, BF16 or \"fastllm\"");
  }
  return make_weight(tensor.name, tensor.shape, tensor.payload, file_);
}

}  // namespace slicellm
