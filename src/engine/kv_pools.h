#pragma once

#include <cstdint>

#include "slicellm/engine.h"
#include "slicellm/model.h"

namespace slicellm {

struct KvPools {
  int32_t device_blocks = 0, host_blocks = 0;
};

// Blocks of an engine's KV pools: on the device `kv_cache_bytes`, or, for 0, of what is free beside
// the largest step (half of it, both pools together, where the device shares the host's memory)
// what all rows at their longest can use; in host memory `host_kv_bytes`, or, for -1, as much again
// within half of its free memory. Throws Error(resource) where there is no room for one block,
// Error(invalid_argument) for sizes of none or too many.
KvPools size_kv_pools(const Model& model, const EngineOptions& engine, int64_t kv_cache_bytes,
                      int64_t host_kv_bytes);

}  // namespace slicellm
