#pragma once

#include "slicellm/engine.h"
#include "slicellm/executor.h"
#include "slicellm/format.h"

namespace slicellm {

// Runs steps that stand for nothing, before an engine has tasks: the largest prefill step, and
// decode steps of 1, 2, 4, ... rows up to the most, over contexts as long as KV has room for. The
// GPU has then loaded what it computes with, and workspaces are as large as such steps need (rows
// with drafts and host-drawn ones may need more), so that a first token takes no longer than any
// other. `progress` counts steps. Throws what steps throw.
void warm_up(Executor& executor, const EngineOptions& options, const Progress& progress);

}  // namespace slicellm
