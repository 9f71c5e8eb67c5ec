#include "slicellm/tensor.h"

#include <algorithm>
#include <cstring>

#include "format/half.h"
#include "format/mapped_file.h"

namespace slicellm {
namespace {

template <typename Convert>
void decode_16bit(const uint8_t* data, int64_t count, float* out, Convert convert) {
  for (int64_t i = 0; i < count; ++i) {
    uint16_t bits;
    std::memcpy(&bits, data + 2 * i, 2);  // mapped data need not be aligned
    out[i] = convert(bits);
  }
}

void decode_int8(const uint8_t* codes, int64_t count, float minimum, float scale, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = minimum + scale * static_cast<float>(codes[i]);
}

// Elements [first, first + count) of the nibble stream, all of one group.
void decode_int4(const uint8_t* data, int64_t first, int64_t count, float minimum, float scale,
                 float* out) {
  if (count > 0 && first % 2 == 1) {
    *out++ = minimum + scale * static_cast<float>(data[first / 2] & 15);
    ++first, --count;
  }
  const uint8_t* bytes = data + first / 2;
  for (int64_t i = 0; i < count / 2; ++i) {
    out[2 * i] = minimum + scale * static_cast<float>(bytes[i] >> 4);
    out[2 * i + 1] = minimum + scale * static_cast<float>(bytes[i] & 15);
  }
  if (count % 2 == 1) out[count - 1] = minimum + scale * static_cast<float>(bytes[count / 2] >> 4);
}

}  // namespace

void release_rows(const Weight& w, int64_t, int64_t) {
  if (!w.mapped) return;
  // The whole mapping: a page that is read may bring 2 MiB around it into memory.
  release_pages(static_cast<const MappedFile*>(w.owner.get())->bytes());
}

void decode(const Weight& w, int64_t first, int64_t count, float* out) {
  if (count == 0) return;  // `out` may be null then
  const auto* data = static_cast<const uint8_t*>(w.data);
  switch (w.dtype) {
    case DType::float32:
      std::memcpy(out, data + 4 * first, static_cast<size_t>(4 * count));
      return;
    case DType::float16:
      return decode_16bit(data + 2 * first, count, out, half_bits_to_float);
    case DType::bfloat16:
      return decode_16bit(data + 2 * first, count, out, bfloat16_bits_to_float);
    case DType::int8:
    case DType::int4:
      break;
  }
  const int64_t cols = w.cols(), groups = w.groups();
  while (count > 0) {
    const int64_t row = first / cols, col = first % cols, group = col / w.group_size;
    const int64_t group_end = std::min((group + 1) * w.group_size, cols);
    const int64_t run = std::min(count, group_end - col);
    const size_t at = static_cast<size_t>(row * groups + group);
    if (w.dtype == DType::int8) {
      decode_int8(data + first, run, w.minimum[at], w.scale[at], out);
    } else {
      decode_int4(data, first, run, w.minimum[at], w.scale[at], out);
    }
    first += run, count -= run, out += run;
  }
}

}  // namespace slicellm
