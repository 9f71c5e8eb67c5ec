#pragma once

#include <cstdint>
#include <vector>

namespace slicellm::cuda {

// All that the launches of a step take from the host, as numbers: sizes, addresses, switches. Steps
// of one signature launch the same kernels with the same arguments; what else differs between them
// (token ids, positions, block tables) the kernels read from device memory.
using Signature = std::vector<uint64_t>;

// An address as a part of a signature.
inline uint64_t number_of(const void* address) { return reinterpret_cast<uintptr_t>(address); }

}  // namespace slicellm::cuda
