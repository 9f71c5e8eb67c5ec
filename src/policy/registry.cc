#include <string>

#include "policy/policies.h"
#include "slicellm/error.h"

namespace slicellm {
namespace {

struct Entry {
  PolicyInfo (*info)();
  std::unique_ptr<Policy> (*make)(const Parameters& parameters);
};

constexpr Entry kEntries[] = {
    {slice_info, make_slice},
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
};

}  // namespace

std::vector<PolicyInfo> list_policies() {
  std::vector<PolicyInfo> infos;
  for (const Entry& entry : kEntries) infos.push_back(entry.info());
  return infos;
}

std::unique_ptr<Policy> make_policy(std::string_view text) {
  const size_t colon = text.find(':');
  const std::string name(text.substr(0, colon));
  std::string known;
  for (const Entry& entry : kEntries) {
    const PolicyInfo info = entry.info();
    if (info.name == name) {
      const bool given = colon != std::string_view::npos;
      if (given && colon + 1 == text.size()) {
        throw Error(ErrorKind::invalid_argument, "policy " + name, "a colon at the end",
                    "parameters as name=value,name=value after it");
      }
      return entry.make(Parameters(info, given ? text.substr(colon + 1) : std::string_view()));
    }
    if (!known.empty()) known += ", ";
    known += info.name;
  }
  throw Error(ErrorKind::invalid_argument, "policy", "\"" + name + "\"", "one of " + known);
}

}  // namespace slicellm
