#pragma once

#include <cstddef>

namespace slicellm::cpu {

// Bytes that this process may still allocate: the system's available memory, or less where the
// process's control group (a container) has a limit.
size_t available_memory();

}  // namespace slicellm::cpu
