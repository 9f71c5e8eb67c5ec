// ils: iteration-level scheduling as in the comparison of SCLS (Cheng et al., arXiv 2406.13511,
// section 5): continuous batching with a conservative cap on the tasks that run in parallel. It is
// orca with another cap.
#include "policy/policies.h"

namespace slicellm {

PolicyInfo ils_info() {
  return {"ils",
          "Cheng et al., SCLS, arXiv 2406.13511, baseline ILS",
          "Continuous batching with a conservative cap on parallel tasks.",
          {{"max_parallel", "8", "tasks that may run at once"}}};
}

std::unique_ptr<Policy> make_ils(const Parameters& parameters) {
  return make_iteration_level("ils", parameters.integer("max_parallel", 1, 1 << 20));
}

}  // namespace slicellm
