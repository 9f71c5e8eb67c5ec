#pragma once

#include "slicellm/engine.h"
#include "slicellm/executor.h"
#include "slicellm/format.h"

namespace slicellm {

// Runs steps that stand for nothing, before an engine has tasks: the largest prefill step, which
// makes every workspace as large as it will be, and decode steps of 1, 2, 4, ... rows up to the
// most, so that the GPU has loaded what it computes them with. A first token then takes no longer
// than any other. `progress` counts steps. Throws what steps throw.
void warm_up(Executor& executor, const EngineOptions& options, const Progress& progress);

}  // namespace slicellm
