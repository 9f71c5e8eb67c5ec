#pragma once

#include <memory>

#include "policy/parameters.h"
#include "slicellm/policy.h"

// One pair of functions a policy, each in the policy's own file; registry.cc lists them.
namespace slicellm {

PolicyInfo slice_info();
std::unique_ptr<Policy> make_slice(const Parameters& parameters);

PolicyInfo pace_info();
std::unique_ptr<Policy> make_pace(const Parameters& parameters);

PolicyInfo pace_told_info();
std::unique_ptr<Policy> make_pace_told(const Parameters& parameters);

PolicyInfo orca_info();
std::unique_ptr<Policy> make_orca(const Parameters& parameters);
// Orca's rules under another name and cap.
std::unique_ptr<Policy> make_iteration_level(std::string name, int32_t max_batch);
PolicyInfo static_info();
std::unique_ptr<Policy> make_static(const Parameters& parameters);
PolicyInfo ils_info();
std::unique_ptr<Policy> make_ils(const Parameters& parameters);
PolicyInfo scls_info();
std::unique_ptr<Policy> make_scls(const Parameters& parameters);
PolicyInfo fastserve_info();
std::unique_ptr<Policy> make_fastserve(const Parameters& parameters);
PolicyInfo sarathi_info();
std::unique_ptr<Policy> make_sarathi(const Parameters& parameters);
PolicyInfo vllm_info();
std::unique_ptr<Policy> make_vllm(const Parameters& parameters);
PolicyInfo slai_info();
std::unique_ptr<Policy> make_slai(const Parameters& parameters);
PolicyInfo rad_like_info();
std::unique_ptr<Policy> make_rad_like(const Parameters& parameters);
PolicyInfo edf_info();
std::unique_ptr<Policy> make_edf(const Parameters& parameters);
PolicyInfo priority_pause_info();
std::unique_ptr<Policy> make_priority_pause(const Parameters& parameters);

}  // namespace slicellm
