#pragma once

#include <memory>

#include "bindings/bindings.h"
#include "slicellm/policy.h"

namespace slicellm {

// What Engine takes as its policy: a text for make_policy, the result of make_policy (which moves
// into the engine and cannot be used from Python any more) or an object of a Python class derived
// from slicellm.Policy (kept alive by the result; its methods run with the GIL, and what they raise
// becomes Error(state) that names the policy). Needs the GIL.
// Throws Error(invalid_argument | state).
std::unique_ptr<Policy> take_policy(const py::object& policy);

}  // namespace slicellm
