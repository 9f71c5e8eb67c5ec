#include "cpu/isa.h"

#include <sched.h>
#if defined(__aarch64__)
#include <sys/auxv.h>
#endif

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
    case Isa::neon:
      return "neon";
    case Isa::dotprod:
      return "dotprod";
    case Isa::i8mm:
      return "i8mm";
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
#elif defined(__aarch64__)
    case Isa::neon:
      return true;
    case Isa::dotprod:
      return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
    case Isa::i8mm:
      return is_supported(Isa::dotprod) && (getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0;
#endif
    default:
      return false;
  }
}

std::vector<Isa> supported_isas() {
  std::vector<Isa> result;
  for (Isa isa : {Isa::avx512, Isa::avx2, Isa::i8mm, Isa::dotprod, Isa::neon, Isa::portable}) {
    if (is_supported(isa)) result.push_back(isa);
  }
  return result;
}

Isa choose_isa(const std::string& name) {
  std::string usable;
  for (Isa isa : supported_isas()) {
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
