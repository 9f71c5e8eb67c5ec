#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace slicellm::bench {

// The command line of the native benchmark.
struct Options {
  bool help = false;
  std::string path;
  std::string dtype = "auto";
  int threads = 0;  // 0 = every usable core
  int batch = 64;   // most rows in one step
  int limit = 0;    // cap on output tokens; 0 = the workload's
  std::vector<std::string> policies;
  double rate = 0;  // tasks/s; 0 = load * saturation
  double load = 1;  // times saturation
  std::vector<double> intervals;
  int concurrent = 0;      // > 0: so many tasks at once
  int total_tasks = 0;     // 0 = the default of the mode
  bool test_mode = false;  // twelve tasks, each token's time printed
  uint64_t seed = 0;
  double slo_scale = 0;  // 0 = auto
  std::string save_result;
};

// Throws Error(invalid_argument) naming the flag.
Options parse_options(int argc, const char* const* argv);

extern const char* const kHelp;

}  // namespace slicellm::bench
