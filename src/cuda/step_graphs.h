#pragma once

#include <cstddef>
#include <functional>
#include <list>

#include "cuda/runtime.h"
#include "cuda/signature.h"

namespace slicellm::cuda {

// Steps on record, to be started with one call. When a signature comes for the first time its
// kernels are launched one by one (which also loads them); the second time they are recorded.
//
// No record can run with memory that has been freed: every address that can change is part of the
// signature, so that a record of other memory is not found again and makes room in time.
// For one thread at a time.
class StepGraphs {
 public:
  // Kept at most, the least recently used makes room: a GPU has memory of each, and the engine's
  // default is up to 64 rows a step, with mostly one signature for each number of rows at a time.
  static constexpr size_t kMost = 64;

  // Does on `stream` what `launches` launches on the stream that it is given. Returns whether a
  // record was started that an earlier step has made. A step that cannot be recorded is launched
  // like the first. Throws what `launches` throws.
  using Launches = std::function<void(const Stream& on)>;
  bool run(const Stream& stream, Signature signature, const Launches& launches);

 private:
  struct Step {
    Signature signature;
    Graph graph;          // empty after the first time
    bool failed = false;  // to be recorded
  };

  Stream capture_;         // others start work on the stream proper meanwhile
  std::list<Step> steps_;  // the most recently used first
};

}  // namespace slicellm::cuda
