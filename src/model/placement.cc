#include <algorithm>
#include <charconv>
#include <map>
#include <string>
#include <utility>

#include "format/byte_reader.h"
#include "model/family.h"
#include "model/weights.h"
#include "slicellm/error.h"
#include "slicellm/model.h"

namespace slicellm {
namespace {

// What "auto" leaves room for beside weights: K and V of this many tokens and a step of this size.
constexpr int32_t kRoomForTokens = 8192;
constexpr int32_t kStepTokens = 2048, kStepRows = 64;

struct Share {
  std::string device;
  int32_t layers = 0;
};

[[noreturn]] void fail(std::string_view text, const std::string& expected) {
  throw Error(ErrorKind::invalid_argument, "device", shown(text), expected);
}

std::vector<Share> parse(std::string_view text) {
  constexpr int32_t kMost = 1 << 20;
  std::vector<Share> shares;
  for (std::string_view rest = text;;) {
    const std::string_view part = rest.substr(0, rest.find(','));
    const size_t equals = part.find('=');
    Share& share = shares.emplace_back();
    share.device = part.substr(0, equals);
    if (equals == part.npos) {
      share.layers = 1;
      if (part.size() < text.size()) {
        fail(text, "one device, or several with their layers as in \"cuda:0=20,cpu=8\"");
      }
    } else {
      const char* end = part.data() + part.size();
      const auto [last, error] = std::from_chars(part.data() + equals + 1, end, share.layers);
      if (error != std::errc() || last != end || share.layers < 1 || share.layers > kMost) {
        fail(part, "a device and its layers, at least one, as in \"cuda:0=20\"");
      }
    }
    if (part.size() == rest.size()) return shares;
    rest.remove_prefix(part.size() + 1);
  }
}

// Layers in proportion to the shares, at least one each.
Placement divide(std::string_view text, const std::vector<Share>& shares, int32_t layers,
                 const CpuOptions& cpu, const GpuOptions& gpu) {
  const auto parts = static_cast<int32_t>(shares.size());
  if (parts > layers) {
    fail(text, "at most as many parts as the model has layers, " + std::to_string(layers));
  }
  int64_t total = 0, sum = 0;
  for (const Share& share : shares) total += share.layers;
  std::map<std::string, std::shared_ptr<Device>> devices;
  Placement placement;
  int32_t begin = 0;
  for (int32_t i = 0; i < parts; ++i) {
    const Share& share = shares[static_cast<size_t>(i)];
    std::shared_ptr<Device>& device = devices[share.device == "cuda" ? "cuda:0" : share.device];
    if (!device) device = make_device(share.device, cpu, gpu);
    sum += share.layers;
    const auto rounded = static_cast<int32_t>((sum * layers + total / 2) / total);
    const int32_t end = std::clamp(rounded, begin + 1, layers - (parts - 1 - i));
    placement.push_back({device, end - begin});
    begin = end;
  }
  return placement;
}

// The last layers that fit into what is free, with the head; all of them only with the embedding.
int32_t fitting_layers(const ModelFile& file, const ModelLayout& model, const ModelOptions& options,
                       const Device& gpu) {
  const ModelSpec& spec = model.spec;
  KvLayout kv{
      .layers = 1, .kv_heads = spec.kv_heads, .head_dim = spec.head_dim, .dtype = options.kv_dtype};
  const auto blocks = static_cast<size_t>(
      (std::min(spec.max_positions, kRoomForTokens) + kv.block_tokens - 1) / kv.block_tokens);
  const size_t free = gpu.free_memory();
  StepBounds most;
  most.tokens = kStepTokens;
  most.sequences = most.rows = kStepRows;
  most.context = std::min(spec.max_positions, kRoomForTokens);
  size_t used = step_bytes(spec, most, gpu) + device_bytes(file, model.head, options);
  int32_t layers = 0;
  for (; layers < spec.layers; ++layers) {
    const LayerSource& layer = model.layers[static_cast<size_t>(spec.layers - 1 - layers)];
    used += blocks * kv.block_bytes();
    for (const LinearSource* source : {&layer.qkv, &layer.attention_out, &layer.up, &layer.down}) {
      used += device_bytes(file, *source, options);
    }
    if (layers + 1 == spec.layers) used += device_bytes(file, model.embedding);
    if (used > free) break;
  }
  return layers;
}

Placement choose(const ModelFile& file, const ModelLayout& model, const CpuOptions& cpu,
                 const GpuOptions& gpu_options, const ModelOptions& options) {
  std::shared_ptr<Device> gpu;
  try {
    gpu = make_cuda_device(0, gpu_options);
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::unsupported) throw;
  }
  const int32_t layers = model.spec.layers;
  const int32_t on_gpu = gpu ? fitting_layers(file, model, options, *gpu) : 0;
  Placement placement;
  if (on_gpu < layers) placement.push_back({make_cpu_device(cpu), layers - on_gpu});
  if (on_gpu > 0) placement.push_back({std::move(gpu), on_gpu});
  return placement;
}

void refuse_gpu_options(std::string_view text, const GpuOptions& gpu) {
  const std::string expected = "none with device " + shown(text) + ", as it is for GPUs";
  if (gpu.mem_ratio) {
    throw Error(ErrorKind::unsupported, "gpu_mem_ratio", std::to_string(*gpu.mem_ratio), expected);
  }
  if (gpu.vram_limit != 0) {
    throw Error(ErrorKind::unsupported, "vram_limit", std::to_string(gpu.vram_limit) + " bytes",
                expected);
  }
}

}  // namespace

Placement make_placement(std::string_view text, const ModelFile& file, const CpuOptions& cpu,
                         const GpuOptions& gpu, const ModelOptions& options) {
  if (text == "auto") return choose(file, make_model_layout(file), cpu, gpu, options);
  const std::vector<Share> shares = parse(text);
  const auto is_gpu = [](const Share& share) { return share.device.starts_with("cuda"); };
  if (std::ranges::none_of(shares, is_gpu)) refuse_gpu_options(text, gpu);
  return divide(text, shares, make_model_spec(file).layers, cpu, gpu);
}

std::string describe(const Placement& placement) {
  if (placement.size() == 1) return placement.front().device->describe();
  std::string text;
  for (const ModelPart& part : placement) {
    text += (text.empty() ? "" : "; ") + std::to_string(part.layers) +
            (part.layers == 1 ? " layer on " : " layers on ") + part.device->describe();
  }
  return text;
}

}  // namespace slicellm
