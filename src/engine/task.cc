#include "slicellm/task.h"

#include <cstdio>

#include "slicellm/error.h"

namespace slicellm {
namespace {

// Caps against absurd requests; far above what a model on one box can use.
constexpr size_t kMaxPrompt = 1 << 24;      // tokens
constexpr int32_t kMaxOutput = 1 << 24;     // tokens
constexpr double kMaxSeconds = 1e9;         // about 30 years
constexpr size_t kMaxStops = 64;            // stop strings
constexpr size_t kMaxStopBytes = 1024;      // bytes of one stop string
constexpr size_t kMaxStopIds = 4096;        // stop ids
constexpr int32_t kMaxLogprobs = 100;       // best tokens a row reports
constexpr size_t kMaxClassNameBytes = 128;  // bytes of a class name

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.10g", value);
  return text;
}

[[noreturn]] void refuse(const char* field, std::string value, const char* expected) {
  throw Error(ErrorKind::invalid_argument, field, std::move(value), expected);
}

void check_target(const std::optional<double>& seconds, const char* field) {
  if (!seconds) return;
  if (!(*seconds > 0 && *seconds <= kMaxSeconds)) {
    refuse(field, number(*seconds * 1000), "milliseconds above 0 and at most 1e12, or nothing");
  }
}

void check_sampling(const Sampling& s) {
  if (!(s.temperature >= 0 && s.temperature <= 100)) {
    refuse("temperature", number(s.temperature), "a number from 0 (greedy) to 100");
  }
  if (s.top_k < 0) refuse("top_k", std::to_string(s.top_k), "0 (all tokens) or a count above 0");
  if (!(s.top_p > 0 && s.top_p <= 1)) {
    refuse("top_p", number(s.top_p), "a number above 0 and at most 1");
  }
  if (!(s.min_p >= 0 && s.min_p <= 1)) refuse("min_p", number(s.min_p), "a number from 0 to 1");
  if (!(s.repetition_penalty >= 0.01 && s.repetition_penalty <= 100)) {
    refuse("repetition_penalty", number(s.repetition_penalty), "a number from 0.01 to 100");
  }
  if (s.logprobs < -1 || s.logprobs > kMaxLogprobs) {
    refuse("logprobs", std::to_string(s.logprobs), "nothing, or a count from 0 to 100");
  }
}

void check_stops(const TaskSpec& task) {
  if (task.stop.size() > kMaxStops) {
    refuse("stop", std::to_string(task.stop.size()) + " strings", "at most 64 strings");
  }
  for (const std::string& text : task.stop) {
    if (text.empty() || text.size() > kMaxStopBytes) {
      refuse("stop", "a string of " + std::to_string(text.size()) + " bytes",
             "strings of 1 to 1024 bytes");
    }
  }
  if (task.stop_ids.size() > kMaxStopIds) {
    refuse("stop_ids", std::to_string(task.stop_ids.size()) + " ids", "at most 4096 ids");
  }
  for (int32_t id : task.stop_ids) {
    if (id < 0) refuse("stop_ids", std::to_string(id), "token ids from 0 up");
  }
}

}  // namespace

const char* to_string(FinishReason reason) {
  switch (reason) {
    case FinishReason::none:
      return "none";
    case FinishReason::stop:
      return "stop";
    case FinishReason::length:
      return "length";
    case FinishReason::cancelled:
      return "cancelled";
    case FinishReason::deadline:
      return "deadline";
    case FinishReason::rejected:
      return "rejected";
    case FinishReason::error:
      return "error";
  }
  return "none";
}

void TaskSpec::validate() const {
  if (prompt.empty()) refuse("prompt", "no tokens", "at least one token");
  if (prompt.size() > kMaxPrompt) {
    refuse("prompt", std::to_string(prompt.size()) + " tokens", "at most 16777216 tokens");
  }
  for (int32_t id : prompt) {
    if (id < 0) refuse("prompt", "token id " + std::to_string(id), "token ids from 0 up");
  }
  check_sampling(sampling);
  check_target(slo.ttft, "ttft_ms");
  check_target(slo.tpot, "tpot_ms");
  check_target(slo.deadline, "deadline_ms");
  if (!(utility >= 0 && utility <= 1e9)) {
    refuse("utility", number(utility), "a number from 0 to 1e9");
  }
  if (max_tokens < 1 || max_tokens > kMaxOutput) {
    refuse("max_tokens", std::to_string(max_tokens), "a count from 1 to 16777216");
  }
  if (class_name.empty() || class_name.size() > kMaxClassNameBytes) {
    refuse("class_name", "a name of " + std::to_string(class_name.size()) + " bytes",
           "1 to 128 bytes");
  }
  check_stops(*this);
  if (stop_at_deadline && !slo.deadline) {
    refuse("stop_at_deadline", "true without a deadline", "a deadline_ms beside it");
  }
  if (arrival && !(*arrival >= 0 && *arrival <= kMaxSeconds)) {
    refuse("arrival_s", number(*arrival), "seconds from 0 to 1e9, or nothing");
  }
  if (true_output_tokens < 0 || true_output_tokens > kMaxOutput) {
    refuse("true_output_tokens", std::to_string(true_output_tokens),
           "0 (the model decides) or a count up to 16777216");
  }
}

}  // namespace slicellm
