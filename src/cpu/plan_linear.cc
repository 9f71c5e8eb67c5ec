#include <algorithm>
#include <cstring>
#include <string>

#include "cpu/linear.h"
#include "slicellm/dtype.h"
#include "slicellm/error.h"

// The layout of a packed linear, and its image in a file.
namespace slicellm::cpu {
namespace {

constexpr size_t kLine = 64;
constexpr int64_t kSectionGroups = 4;       // keeps sections aligned to their vectors
constexpr int64_t kMostFeatures = 1 << 28;  // of a restored linear: keeps products below 2^63

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

// An image's text: the shape as numbers and whether a bias of `out` floats follows.
struct About {
  int64_t dtype, integer, compact, gated, in, out, group, has_bias;
};

[[noreturn]] void throw_image(const std::string& value) {
  throw Error(ErrorKind::format, "packed linear", value, "an image of this device's form");
}

About read_about(const std::string& text) {
  About about;
  if (text.size() < sizeof(about)) throw_image(std::to_string(text.size()) + " bytes about it");
  std::memcpy(&about, text.data(), sizeof(about));
  const auto is_switch = [](int64_t value) { return value == 0 || value == 1; };
  const auto is_size = [](int64_t value) { return value >= 1 && value <= kMostFeatures; };
  if (about.dtype < 0 || about.dtype > static_cast<int64_t>(DType::int4) ||
      !is_switch(about.integer) || !is_switch(about.compact) || !is_switch(about.gated) ||
      !is_switch(about.has_bias) || !is_size(about.in) || !is_size(about.out) ||
      !is_size(about.group) || about.group > about.in) {
    throw_image("numbers out of range");
  }
  const bool quantized = is_quantized(static_cast<DType>(about.dtype));
  if ((about.gated && about.out % 2 != 0) || (!quantized && (about.integer || about.compact))) {
    throw_image("a shape that no linear has");
  }
  const size_t bias = about.has_bias ? sizeof(float) * static_cast<size_t>(about.out) : 0;
  if (text.size() != sizeof(about) + bias) throw_image("a bias of another size");
  return about;
}

}  // namespace

CpuLinear::CpuLinear(Isa isa, const LinearShape& shape) : shape_(shape) {
  const LinearKernels& kernels = linear_kernels(isa);
  layout_.kind = kind_of(shape.dtype);
  layout_.in = shape.in;
  kernel_ = shape.integer ? &kernels.integer[shape.dtype == DType::int4]
                          : &kernels.exact[static_cast<int>(layout_.kind)];
  layout_.activation = kernel_->activation;
  layout_.panel_rows = kernel_->panel_rows;
  layout_.max_tokens = kernel_->max_tokens;
  const int64_t rows = layout_.panel_rows;
  panels_ = shape.gated ? 2 * ((shape.out / 2 + rows - 1) / rows) : (shape.out + rows - 1) / rows;
  if (is_quantized(shape.dtype)) {
    plan_int();
    return;
  }
  layout_.padded_in = layout_.in;
  layout_.panel_bytes = static_cast<size_t>(layout_.in * rows) * dtype_bits(shape.dtype) / 8;
  layout_.token_bytes = static_cast<size_t>(layout_.in) * sizeof(float);
}

void CpuLinear::plan_int() {
  cut_blocks();
  layout_.compact = shape_.compact;
  const auto rows = static_cast<size_t>(layout_.panel_rows);
  const auto section_groups = static_cast<size_t>(std::min(layout_.groups, kSectionGroups));
  layout_.section_groups = static_cast<int>(section_groups);
  layout_.zeros_offset = section_groups * rows * (layout_.compact ? 2 : 4);
  layout_.codes_offset =
      round_up(layout_.zeros_offset + section_groups * rows * (layout_.compact ? 1 : 4), rows * 4);
  const auto sections = static_cast<size_t>((layout_.groups + kSectionGroups - 1) / kSectionGroups);
  const auto codes = static_cast<size_t>(layout_.padded_in) * rows * dtype_bits(shape_.dtype) / 8;
  layout_.panel_bytes = round_up(sections * layout_.codes_offset + codes, kLine);
  const size_t code_bytes = layout_.activation == ActivationKind::int8    ? 1
                            : layout_.activation == ActivationKind::int16 ? 2
                                                                          : 4;
  layout_.act_scales_offset = static_cast<size_t>(layout_.padded_in) * code_bytes;
  layout_.act_sums_offset = layout_.act_scales_offset + static_cast<size_t>(layout_.blocks) * 4;
  layout_.token_bytes = layout_.act_sums_offset + static_cast<size_t>(layout_.blocks) * 4;
}

void CpuLinear::cut_blocks() {
  layout_.group = shape_.group;
  layout_.groups = (shape_.in + shape_.group - 1) / shape_.group;
  layout_.blocks_per_group = (layout_.group + kMaxBlock - 1) / kMaxBlock;
  for (int64_t begin = 0; begin < layout_.in; begin += layout_.group) {
    const int64_t end = std::min(begin + layout_.group, layout_.in);
    for (int64_t k = begin; k < end; k += kMaxBlock) {
      const int64_t steps = (std::min<int64_t>(end - k, kMaxBlock) + kStep - 1) / kStep;
      block_steps_.push_back(static_cast<uint8_t>(steps));
      layout_.padded_in += steps * kStep;
    }
  }
  layout_.blocks = static_cast<int64_t>(block_steps_.size());
  layout_.block_steps = block_steps_.data();
}

PackedImage CpuLinear::image() const {
  const About about{static_cast<int64_t>(shape_.dtype),
                    shape_.integer,
                    shape_.compact,
                    shape_.gated,
                    shape_.in,
                    shape_.out,
                    shape_.group,
                    !bias_.empty()};
  PackedImage image;
  image.about.assign(reinterpret_cast<const char*>(&about), sizeof(about));
  image.about.append(reinterpret_cast<const char*>(bias_.data()), sizeof(float) * bias_.size());
  image.panels = {data_.get(), bytes()};
  return image;
}

std::unique_ptr<CpuLinear> restore_linear(Isa isa, WeightArena& arena, const std::string& text,
                                          size_t panel_bytes, bool gated,
                                          const Device::ReadPanels& read) {
  const About about = read_about(text);
  if (gated != (about.gated == 1)) throw_image(gated ? "a linear without gate" : "a gated linear");
  auto linear = std::make_unique<CpuLinear>(
      isa, LinearShape{static_cast<DType>(about.dtype), about.integer == 1, about.compact == 1,
                       about.gated == 1, about.in, about.out, about.group});
  if (linear->bytes() != panel_bytes) throw_image(std::to_string(panel_bytes) + " bytes");
  if (about.has_bias) {
    linear->bias_.resize(static_cast<size_t>(about.out));
    std::memcpy(linear->bias_.data(), text.data() + sizeof(about), text.size() - sizeof(about));
  }
  linear->data_ = arena.allocate(panel_bytes);
  read({linear->data_.get(), panel_bytes});
  return linear;
}

}  // namespace slicellm::cpu
