#pragma once

#include <memory>

#include "policy/parameters.h"
#include "slicellm/policy.h"

// One pair of functions a policy, each in the policy's own file; registry.cc lists them.
namespace slicellm {

PolicyInfo slice_info();
std::unique_ptr<Policy> make_slice(const Parameters& parameters);

PolicyInfo orca_info();
std::unique_ptr<Policy> make_orca(const Parameters& parameters);
PolicyInfo fastserve_info();
std::unique_ptr<Policy> make_fastserve(const Parameters& parameters);

}  // namespace slicellm
