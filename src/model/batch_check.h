#pragma once

#include <cstdint>
#include <span>

#include "slicellm/batch.h"
#include "slicellm/kv_cache.h"
#include "slicellm/model.h"

namespace slicellm {

// Everything a forward pass relies on: sequences cover the tokens one after another, positions and
// token ids are within the model, block tables reach as far as the tokens and name blocks that
// exist, asked rows exist, and an indivisible prompt comes in one piece. O(tokens + blocks), no
// allocation. Throws Error(invalid_argument).
void check_batch(const Batch& batch, const ModelSpec& spec, const KvLayout& expected,
                 const KvStorage& kv, std::span<const int32_t> rows);

}  // namespace slicellm
