#include "cuda/step_graphs.h"

#include <algorithm>
#include <utility>

#include "slicellm/error.h"

namespace slicellm::cuda {

bool StepGraphs::run(const Stream& stream, Signature signature, const Launches& launches) {
  const auto known = std::ranges::find(steps_, signature, &Step::signature);
  if (known == steps_.end()) {
    launches(stream);
    steps_.push_front({std::move(signature), {}});
    if (steps_.size() > kMost) steps_.pop_back();
    return false;
  }
  steps_.splice(steps_.begin(), steps_, known);
  const bool recorded = !known->graph.empty();
  if (!recorded && !known->failed) {
    try {
      known->graph = Graph(capture_, [&] { launches(capture_); });
    } catch (const Error&) {  // memory, perhaps: a record is a matter of speed alone
      known->failed = true;
    }
  }
  if (known->failed) {
    launches(stream);
  } else {
    known->graph.launch(stream);
  }
  return recorded;
}

}  // namespace slicellm::cuda
