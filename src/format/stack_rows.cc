#include "format/stack_rows.h"

#include <cstring>

#include "slicellm/error.h"

namespace slicellm {
namespace {

// Elements per row of the range: a vector's elements count as rows of one.
int64_t row_width(const Weight& w) { return w.shape.size() == 1 ? 1 : w.cols(); }
int64_t row_count(const Weight& w) { return w.shape[0]; }

uint8_t nibble(const uint8_t* data, int64_t i) {
  return i % 2 == 0 ? data[i / 2] >> 4 : data[i / 2] & 15;
}

// Copies nibbles [from, from + count) of `source` to [to, ...) of `target`, which is zero there.
void copy_nibbles(const uint8_t* source, int64_t from, uint8_t* target, int64_t to, int64_t count) {
  if (from % 2 == 0 && to % 2 == 0) {
    std::memcpy(target + to / 2, source + from / 2, static_cast<size_t>(count / 2));
    from += count - count % 2, to += count - count % 2, count %= 2;
  }
  for (int64_t i = 0; i < count; ++i) {
    const int shift = (to + i) % 2 == 0 ? 4 : 0;
    target[(to + i) / 2] |= static_cast<uint8_t>(nibble(source, from + i) << shift);
  }
}

void check_alike(const std::string& name, const Weight& a, const Weight& b) {
  if (a.dtype == b.dtype && a.shape.size() == b.shape.size() && row_width(a) == row_width(b) &&
      a.group_size == b.group_size) {
    return;
  }
  throw Error(ErrorKind::unsupported, name,
              "parts of different types (" + a.name + " and " + b.name + ")",
              "one type and width in all of them");
}

}  // namespace

Weight stack_rows(const std::string& name, const std::vector<RowRange>& parts) {
  const Weight& first = *parts.front().weight;
  if (parts.size() == 1 && parts[0].begin == 0 && parts[0].end == row_count(first)) {
    Weight whole = first;
    whole.name = name;
    return whole;
  }
  const int64_t width = row_width(first);
  const int64_t bits = dtype_bits(first.dtype);
  int64_t rows = 0;
  for (const RowRange& part : parts) {
    check_alike(name, first, *part.weight);
    rows += part.end - part.begin;
  }
  Weight out;
  out.name = name;
  out.dtype = first.dtype;
  out.shape = first.shape;
  out.shape[0] = rows;
  out.group_size = first.group_size;
  out.data_bytes = static_cast<size_t>((rows * width * bits + 7) / 8);
  auto buffer = std::make_shared<uint8_t[]>(out.data_bytes);
  int64_t position = 0;  // elements
  for (const RowRange& part : parts) {
    const auto* data = static_cast<const uint8_t*>(part.weight->data);
    const int64_t from = part.begin * width, count = (part.end - part.begin) * width;
    if (bits == 4) {
      copy_nibbles(data, from, buffer.get(), position, count);
    } else {
      std::memcpy(buffer.get() + position * bits / 8, data + from * bits / 8,
                  static_cast<size_t>(count * bits / 8));
    }
    if (is_quantized(out.dtype)) {
      const auto begin = part.begin * first.groups(), end = part.end * first.groups();
      const auto append = [&](std::vector<float>& to, const std::vector<float>& of) {
        to.insert(to.end(), of.begin() + begin, of.begin() + end);
      };
      append(out.scale, part.weight->scale);
      append(out.minimum, part.weight->minimum);
    }
    position += count;
  }
  out.data = buffer.get();
  out.owner = std::move(buffer);
  return out;
}

}  // namespace slicellm
