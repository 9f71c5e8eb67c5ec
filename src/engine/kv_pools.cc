#include "engine/kv_pools.h"

#include <algorithm>
#include <limits>
#include <string>

#include "cpu/system_memory.h"
#include "slicellm/error.h"

namespace slicellm {
namespace {

constexpr int64_t kMaxBlocks = std::numeric_limits<int32_t>::max();

// Of the device's pool: as many as fit on each of the model's devices.
int64_t blocks_in_free_memory(const Model& model, const EngineOptions& engine,
                              int64_t host_kv_bytes) {
  const KvLayout layout = model.kv_layout();
  StepBounds most;
  most.tokens = engine.max_step_tokens;
  most.sequences = engine.max_rows;
  most.rows = static_cast<int32_t>(std::min<int64_t>(
      engine.max_step_tokens, int64_t{engine.max_rows} * (int64_t{1} + engine.prompt_lookup)));
  most.context = engine.max_context;
  // All rows at their longest use no more.
  double blocks =
      static_cast<double>(engine.max_rows) * (engine.max_context / layout.block_tokens + 1);
  for (const ModelPart& part : model.placement()) {
    const Device& device = *part.device;
    size_t steps = 0, bytes = 0;  // of all parts on this device: at a step, a block
    for (const ModelPart& other : model.placement()) {
      if (other.device != part.device) continue;
      steps += step_bytes(model.spec(), most, device);
      bytes += layout.block_bytes() / layout.layers * other.layers;
    }
    double room = static_cast<double>(device.free_memory()) - static_cast<double>(steps);
    if (device.shares_host_memory()) {
      room /= 2;
      if (host_kv_bytes < 0) bytes += layout.block_bytes();  // as many there
      if (host_kv_bytes > 0) room -= static_cast<double>(host_kv_bytes);
    }
    blocks = std::min(blocks, room / static_cast<double>(bytes));
    if (blocks >= 1) continue;
    throw Error(ErrorKind::resource, "kv_cache_bytes", device.describe_memory(),
                "room for a KV block of " + std::to_string(bytes) + " bytes beside a step of " +
                    std::to_string(engine.max_step_tokens) + " tokens, which takes up to " +
                    std::to_string(steps));
  }
  return static_cast<int64_t>(std::min(blocks, static_cast<double>(kMaxBlocks)));
}

int64_t default_host_blocks(const Model& model, int64_t block_bytes, int64_t device_blocks) {
  for (const ModelPart& part : model.placement()) {
    if (part.device->shares_host_memory()) return device_blocks;
  }
  const auto free = static_cast<int64_t>(cpu::available_memory());
  return std::min(device_blocks, free / 2 / block_bytes);
}

}  // namespace

KvPools size_kv_pools(const Model& model, const EngineOptions& engine, int64_t kv_cache_bytes,
                      int64_t host_kv_bytes) {
  const auto block_bytes = static_cast<int64_t>(model.kv_layout().block_bytes());
  const int64_t blocks = kv_cache_bytes == 0 ? blocks_in_free_memory(model, engine, host_kv_bytes)
                                             : kv_cache_bytes / block_bytes;
  const int64_t host_blocks = host_kv_bytes < 0 ? default_host_blocks(model, block_bytes, blocks)
                                                : host_kv_bytes / block_bytes;
  if (blocks < 1 || blocks > kMaxBlocks || host_blocks > kMaxBlocks) {
    throw Error(ErrorKind::invalid_argument, "kv_cache_bytes",
                std::to_string(kv_cache_bytes) + " (" + std::to_string(blocks) + " blocks)",
                "room for at least one KV block of " + std::to_string(block_bytes) +
                    " bytes and at most 2^31");
  }
  return {static_cast<int32_t>(blocks), static_cast<int32_t>(host_blocks)};
}

}  // namespace slicellm
