#pragma once

#include <cstdint>
#include <functional>

namespace slicellm {

// Runs work(begin, end) over [0, count) in pieces of at most `grain` on `threads` threads, the
// caller's among them. The first exception thrown by a piece stops the rest and is thrown again.
void parallel_for(int64_t count, int64_t grain, int threads,
                  const std::function<void(int64_t, int64_t)>& work);

}  // namespace slicellm
