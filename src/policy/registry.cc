#include "policy/policies.h"

namespace slicellm {
namespace {

struct Entry {
  PolicyInfo (*info)();
  std::unique_ptr<Policy> (*make)(const Parameters& parameters);
};

constexpr Entry kEntries[] = {
    {slice_info, make_slice},
    {pace_info, make_pace},
    {orca_info, make_orca},
    {fastserve_info, make_fastserve},
    {static_info, make_static},
    {ils_info, make_ils},
    {scls_info, make_scls},
    {sarathi_info, make_sarathi},
    {vllm_info, make_vllm},
    {slai_info, make_slai},
    {rad_like_info, make_rad_like},
    {edf_info, make_edf},
    {priority_pause_info, make_priority_pause},
    {pace_told_info, make_pace_told},
};

}  // namespace

std::vector<PolicyInfo> list_policies() {
  std::vector<PolicyInfo> infos;
  for (const Entry& entry : kEntries) infos.push_back(entry.info());
  return infos;
}

std::unique_ptr<Policy> make_policy(std::string_view text) {
  return make_by_name("policy", kEntries, text, [](const Entry& entry, const Parameters& given) {
    return entry.make(given);
  });
}

}  // namespace slicellm
