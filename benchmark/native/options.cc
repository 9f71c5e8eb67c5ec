#include "options.h"

#include <charconv>
#include <cmath>
#include <optional>
#include <string_view>

#include "slicellm/error.h"

namespace slicellm::bench {

const char* const kHelp = R"(usage: benchmark -p MODEL [flags]

Runs the workload `edge` (70 % real-time control with a deadline, 15 % voice chat, 15 % question
answering) on a model under one or more scheduling policies, and reports who kept how many promises.

  -p, --path MODEL       .flm file, export directory or Hugging Face directory
  -t, --threads N        CPU threads (default: every usable core)
  -b, --batch N          most tasks in one step (default 64)
  -l, --limit N          at most N output tokens a task
  --dtype D              weights of a Hugging Face directory: float16, int8, int4, int4g128 ...
  --slice                the SLICE policy
  --policy A,B,C         policies to run on the same tasks, the model loaded once, such as
                         slice:ratio=0.9,orca,fastserve (default orca)
  --ratios R             SLICE's period ratio
  --workload edge        the only workload here
  --slo-scale X          multiplies every target (default auto: l(1) of this machine / 14 ms)
  --poisson              random arrivals (the default)
  --lambda R             tasks per second
  --load X               the rate as a multiple of saturation (default 1)
  --intervals S,S,...    given gaps between tasks in seconds, repeated
  --concurrent N         N tasks at once
  --total-tasks N        number of tasks (default 60)
  --test-mode            twelve tasks; prints each token's time
  --seed N               same seed, same tasks (default 0)
  --save-result FILE     every metric as JSON
  -h, --help             this help

Prompts are random tokens of the workload's lengths. The tasks follow the same distributions as those
of the Python `benchmark`, which also has files, traces, seeds, event logs and figures; the draws of
one seed differ between the two. The machine is calibrated anew on every start, for a few seconds.
Exit codes: 0 done, 1 failed, 2 wrong input.
)";

namespace {

[[noreturn]] void refuse(std::string_view flag, std::string_view value, std::string_view expected) {
  throw Error(ErrorKind::invalid_argument, std::string(flag), "'" + std::string(value) + "'",
              std::string(expected));
}

int64_t whole(std::string_view flag, std::string_view text, int64_t low, int64_t high) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < low || value > high) {
    refuse(flag, text,
           "a whole number from " + std::to_string(low) + " to " + std::to_string(high));
  }
  return value;
}

double real(std::string_view flag, std::string_view text, double high, bool zero_allowed) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value) ||
      value < 0 || value > high || (value == 0 && !zero_allowed)) {
    refuse(flag, text, zero_allowed ? "a number of at least 0" : "a number above 0");
  }
  return value;
}

std::vector<std::string> split(std::string_view text) {
  std::vector<std::string> parts;
  while (true) {
    const size_t comma = text.find(',');
    parts.emplace_back(text.substr(0, comma));
    if (comma == std::string_view::npos) return parts;
    text.remove_prefix(comma + 1);
  }
}

// A piece that is only NAME=VALUE goes on with the policy before it.
std::vector<std::string> split_policies(std::string_view text) {
  std::vector<std::string> policies;
  for (const std::string& piece : split(text)) {
    if (piece.empty()) refuse("--policy", text, "policies separated by commas");
    const bool parameter =
        piece.find('=') != std::string::npos && piece.find(':') == std::string::npos;
    if (parameter && !policies.empty()) {
      policies.back() += "," + piece;
    } else {
      policies.push_back(piece);
    }
  }
  return policies;
}

bool is_slice(const std::string& policy) { return policy.substr(0, policy.find(':')) == "slice"; }

}  // namespace

Options parse_options(int argc, const char* const* argv) {
  constexpr int64_t kMaxTasks = 1000000, kMaxTokens = 1 << 24;
  Options options;
  bool slice = false, rated = false;
  std::optional<std::string> ratio;
  int i = 1;
  while (i < argc) {
    const std::string flag = argv[i++];
    const auto is = [&flag](const char* a, const char* b = "") { return flag == a || flag == b; };
    if (is("-h", "--help")) {
      options.help = true;
      return options;
    }
    if (is("--slice")) {
      slice = true;
      continue;
    }
    if (is("--test-mode")) {
      options.test_mode = true;
      continue;
    }
    if (is("--poisson")) {
      rated = true;
      continue;
    }
    static constexpr std::string_view kWithValue[] = {
        "-p",       "--path",       "-t",           "--threads",     "-b",
        "--batch",  "-l",           "--limit",      "--dtype",       "--policy",
        "--ratios", "--workload",   "--slo-scale",  "--lambda",      "--request-rate",
        "--load",   "--intervals",  "--concurrent", "--total-tasks", "--num-prompts",
        "--seed",   "--save-result"};
    bool known = false;
    for (std::string_view name : kWithValue) known = known || flag == name;
    if (!known) refuse("flag", flag, "one of those that benchmark -h lists");
    if (i >= argc) refuse(flag, "", "a value after it");
    const std::string value = argv[i++];
    if (is("-p", "--path")) options.path = value;
    if (is("-t", "--threads")) options.threads = static_cast<int>(whole(flag, value, 1, 1024));
    if (is("-b", "--batch")) options.batch = static_cast<int>(whole(flag, value, 1, 4096));
    if (is("-l", "--limit")) options.limit = static_cast<int>(whole(flag, value, 1, kMaxTokens));
    if (is("--dtype")) options.dtype = value;
    if (is("--policy")) options.policies = split_policies(value);
    if (is("--ratios")) {
      if (real(flag, value, 1, false) > 0) ratio = value;
    }
    if (is("--workload") && value != "edge") refuse(flag, value, "edge");
    if (is("--slo-scale")) options.slo_scale = value == "auto" ? 0 : real(flag, value, 1e6, false);
    if (is("--lambda", "--request-rate")) {
      options.rate = real(flag, value, 1e6, false);
      rated = true;
    }
    if (is("--load")) {
      options.load = real(flag, value, 1e3, false);
      rated = true;
    }
    if (is("--intervals")) {
      for (const std::string& gap : split(value)) {
        options.intervals.push_back(real(flag, gap, 1e9, true));
      }
    }
    if (is("--concurrent")) options.concurrent = static_cast<int>(whole(flag, value, 1, kMaxTasks));
    if (is("--total-tasks", "--num-prompts")) {
      options.total_tasks = static_cast<int>(whole(flag, value, 1, kMaxTasks));
    }
    if (is("--seed")) options.seed = static_cast<uint64_t>(whole(flag, value, 0, INT64_MAX));
    if (is("--save-result")) options.save_result = value;
  }
  if (options.path.empty()) refuse("-p", "", "the path of a model");
  const int ways = static_cast<int>(rated) + static_cast<int>(!options.intervals.empty()) +
                   static_cast<int>(options.concurrent > 0);
  if (ways > 1) {
    refuse("arrivals", "several",
           "one of a rate (--poisson, --lambda, --load), --intervals, "
           "--concurrent");
  }
  if (options.policies.empty()) options.policies = {slice ? "slice" : "orca"};
  bool has_slice = false;
  for (const std::string& policy : options.policies) has_slice = has_slice || is_slice(policy);
  if (slice && !has_slice) options.policies.insert(options.policies.begin(), "slice");
  for (std::string& policy : options.policies) {
    if (ratio && is_slice(policy) && policy.find("ratio=") == std::string::npos) {
      policy += (policy.find(':') == std::string::npos ? ":ratio=" : ",ratio=") + *ratio;
    }
  }
  return options;
}

}  // namespace slicellm::bench
