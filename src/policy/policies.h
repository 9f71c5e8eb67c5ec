#pragma once

#include <memory>

#include "policy/parameters.h"
#include "slicellm/policy.h"

// One pair of functions a policy, each in the policy's own file; registry.cc lists them.
namespace slicellm {

PolicyInfo orca_info();
std::unique_ptr<Policy> make_orca(const Parameters& parameters);

}  // namespace slicellm
