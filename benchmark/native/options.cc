#include "options.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>
#include <map>
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
  std::string ratio;
  std::string flag;  // the one that is being read, as it was written
  const auto number = [&flag](const std::string& value, int64_t high) {
    return static_cast<int>(whole(flag, value, 1, high));
  };
  const std::map<std::string_view, std::string_view> long_names = {
      {"-p", "--path"},
      {"-t", "--threads"},
      {"-b", "--batch"},
      {"-l", "--limit"},
      {"--request-rate", "--lambda"},
      {"--num-prompts", "--total-tasks"},
  };
  const std::map<std::string_view, std::function<void()>> switches = {
      {"--slice", [&] { slice = true; }},
      {"--test-mode", [&] { options.test_mode = true; }},
      {"--poisson", [&] { rated = true; }},
  };
  const std::map<std::string_view, std::function<void(const std::string&)>> settings = {
      {"--path", [&](auto& value) { options.path = value; }},
      {"--threads", [&](auto& value) { options.threads = number(value, 1024); }},
      {"--batch", [&](auto& value) { options.batch = number(value, 4096); }},
      {"--limit", [&](auto& value) { options.limit = number(value, kMaxTokens); }},
      {"--dtype", [&](auto& value) { options.dtype = value; }},
      {"--policy", [&](auto& value) { options.policies = split_policies(value); }},
      {"--ratios",
       [&](auto& value) {
         real(flag, value, 1, false);
         ratio = value;
       }},
      {"--workload",
       [&](auto& value) {
         if (value != "edge") refuse(flag, value, "edge");
       }},
      {"--slo-scale",
       [&](auto& value) {
         options.slo_scale = value == "auto" ? 0 : real(flag, value, 1e6, false);
       }},
      {"--lambda",
       [&](auto& value) {
         options.rate = real(flag, value, 1e6, false);
         rated = true;
       }},
      {"--load",
       [&](auto& value) {
         options.load = real(flag, value, 1e3, false);
         rated = true;
       }},
      {"--intervals",
       [&](auto& value) {
         for (const std::string& gap : split(value)) {
           options.intervals.push_back(real(flag, gap, 1e9, true));
         }
       }},
      {"--concurrent", [&](auto& value) { options.concurrent = number(value, kMaxTasks); }},
      {"--total-tasks", [&](auto& value) { options.total_tasks = number(value, kMaxTasks); }},
      {"--seed",
       [&](auto& value) {
         options.seed = static_cast<uint64_t>(whole(flag, value, 0, INT64_MAX));
       }},
      {"--save-result", [&](auto& value) { options.save_result = value; }},
  };
  for (int i = 1; i < argc; ++i) {
    flag = argv[i];
    if (flag == "-h" || flag == "--help") {
      options.help = true;
      return options;
    }
    const auto longer = long_names.find(flag);
    const std::string_view name = longer == long_names.end() ? flag : longer->second;
    if (const auto found = switches.find(name); found != switches.end()) {
      found->second();
    } else if (const auto setting = settings.find(name); setting != settings.end()) {
      if (++i == argc) refuse(flag, "", "a value after it");
      setting->second(argv[i]);
    } else {
      refuse("flag", flag, "one of those that benchmark -h lists");
    }
  }

  if (options.path.empty()) refuse("-p", "", "the path of a model");
  if (rated + !options.intervals.empty() + (options.concurrent > 0) > 1) {
    refuse("arrivals", "several",
           "one of a rate (--poisson, --lambda, --load), --intervals, --concurrent");
  }
  std::vector<std::string>& policies = options.policies;
  if (policies.empty()) policies = {slice ? "slice" : "orca"};
  if (slice && std::none_of(policies.begin(), policies.end(), is_slice)) {
    policies.insert(policies.begin(), "slice");
  }
  for (std::string& policy : policies) {
    if (!ratio.empty() && is_slice(policy) && policy.find("ratio=") == std::string::npos) {
      policy += (policy.find(':') == std::string::npos ? ":ratio=" : ",ratio=") + ratio;
    }
  }
  return options;
}

}  // namespace slicellm::bench
