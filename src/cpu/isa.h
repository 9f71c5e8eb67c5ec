#pragma once

#include <string>
#include <vector>

namespace slicellm::cpu {

// The instruction sets that kernels are written for. avx2 includes FMA and F16C; avx512 is
// F + BW + DQ + VL + VNNI. On 64-bit ARM neon is what every CPU has; dotprod adds SDOT, and i8mm
// adds SMMLA to that.
enum class Isa { portable, avx2, avx512, neon, dotprod, i8mm };

const char* to_string(Isa isa);

// True when this build has kernels for `isa` and this CPU and operating system run them.
bool is_supported(Isa isa);

// All supported sets, the best first.
std::vector<Isa> supported_isas();

// The best supported set for "", else the named one. Throws Error(invalid_argument).
Isa choose_isa(const std::string& name);

// "AMD EPYC 9354", or "unknown CPU".
std::string cpu_model_name();

// Cores that this process may run on.
int usable_cores();

}  // namespace slicellm::cpu
