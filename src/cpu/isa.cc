#include "cpu/isa.h"

#include <sched.h>

#include <algorithm>
#include <fstream>
#include <string_view>
#include <thread>

#include "slicellm/error.h"

namespace slicellm::cpu {

const char* to_string(Isa isa) {
  switch (isa) {
    case Isa::portable:
      return "portable";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
  }
  return "unknown";
}

bool is_supported(Isa isa) {
  switch (isa) {
    case Isa::portable:
      return true;
#if defined(__x86_64__)
    // The builtin also asks the operating system whether it saves the wide registers.
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("f16c");
    case Isa::avx512:
      return is_supported(Isa::avx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#else
    default:
      return false;
#endif
  }
  return false;
}

Isa choose_isa(const std::string& name) {
  std::string usable;
  for (Isa isa : {Isa::avx512, Isa::avx2, Isa::portable}) {
    if (!is_supported(isa)) continue;
    if (name.empty() || name == to_string(isa)) return isa;
    usable += (usable.empty() ? "" : ", ") + std::string(to_string(isa));
  }
  throw Error(ErrorKind::invalid_argument, "isa", '"' + name + '"', "one of " + usable);
}

std::string cpu_model_name() {
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  while (std::getline(file, line)) {
    if (line.rfind("model name", 0) != 0) continue;
    const size_t colon = line.find(':');
    if (colon == std::string::npos) break;
    const size_t first = line.find_first_not_of(" \t", colon + 1);
    if (first == std::string::npos) break;
    return line.substr(first, line.find_last_not_of(" \t") + 1 - first);
  }
  return "unknown CPU";
}

int usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
  return std::max(1u, std::thread::hardware_concurrency());
}

}  // namespace slicellm::cpu
