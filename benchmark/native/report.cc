#include "report.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <limits>
#include <sstream>

#include "slicellm/error.h"

namespace slicellm::bench {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

bool met(const TaskSpec& spec, const TaskResult& result) {
  if (result.reason != FinishReason::stop && result.reason != FinishReason::length) return false;
  const size_t n = result.tokens.size();
  // A task that finished without a token is judged by the time of its finish.
  const double first = (n > 0 ? result.tokens.front().time : result.finish_time) - result.arrival;
  const double last = (n > 0 ? result.tokens.back().time : result.finish_time) - result.arrival;
  const double tpot = n > 1 ? (last - first) / static_cast<double>(n - 1) : 0;
  return !(spec.slo.ttft && first > *spec.slo.ttft) && !(spec.slo.tpot && tpot > *spec.slo.tpot) &&
         !(spec.slo.deadline && last > *spec.slo.deadline);
}

void add(ClassMetrics& metrics, double utility, bool is_met) {
  ++metrics.submitted;
  metrics.utility += utility;
  if (is_met) {
    ++metrics.met;
    metrics.utility_met += utility;
  }
}

double share(double part, double whole) { return whole > 0 ? part / whole : 0; }

std::string json_number(double value) {
  if (!std::isfinite(value)) return "null";
  std::ostringstream out;
  out.precision(9);
  out << value;
  return out.str();
}

std::string json_summary(const Summary& s, double factor, bool with_max) {
  std::string text = "{\"mean\": " + json_number(s.mean * factor) +
                     ", \"p50\": " + json_number(s.p50 * factor) +
                     ", \"p99\": " + json_number(s.p99 * factor);
  if (with_max) text += ", \"max\": " + json_number(s.max * factor);
  return text + "}";
}

std::string json_class(const ClassMetrics& c) {
  return "{\"submitted\": " + std::to_string(c.submitted) + ", \"met\": " + std::to_string(c.met) +
         ", \"attainment\": " + json_number(share(c.met, c.submitted)) +
         ", \"utility\": " + json_number(share(c.utility_met, c.utility)) + "}";
}

std::string json_metrics(const Metrics& m) {
  std::string text =
      "{\"attainment\": " + json_number(share(m.all.met, m.all.submitted)) +
      ", \"utility\": " + json_number(share(m.all.utility_met, m.all.utility)) +
      ", \"goodput\": " + json_number(share(m.all.met, m.makespan)) +
      ", \"makespan_s\": " + json_number(m.makespan) +
      ", \"output_tokens_per_s\": " + json_number(share(m.output_tokens, m.makespan)) +
      ",\n    \"ttft_ms\": " + json_summary(m.ttft, 1e3, false) +
      ", \"tpot_ms\": " + json_summary(m.tpot, 1e3, false) +
      ",\n    \"itl_ms\": " + json_summary(m.itl, 1e3, true) +
      ", \"e2el_ms\": " + json_summary(m.e2el, 1e3, false) +
      ",\n    \"plan_us\": " + json_summary(m.plan, 1e6, true) +
      ", \"prefill_share\": " + json_number(m.prefill_share) + ",\n    \"classes\": {";
  const char* comma = "";
  for (const auto& [name, c] : m.classes) {
    text += comma + json_string(name) + ": " + json_class(c);
    comma = ", ";
  }
  text += "},\n    \"finish\": {";
  comma = "";
  for (const auto& [reason, count] : m.finish) {
    text += comma + json_string(reason) + ": " + std::to_string(count);
    comma = ", ";
  }
  return text + "}, \"bound\": null}";
}

}  // namespace

Summary summarize(std::vector<double> values) {
  if (values.empty()) return {kNan, kNan, kNan, kNan};
  std::sort(values.begin(), values.end());
  const auto percentile = [&values](double share_below) {
    const double place = share_below * static_cast<double>(values.size() - 1);
    const auto low = static_cast<size_t>(place);
    const size_t high = std::min(low + 1, values.size() - 1);
    return values[low] + (values[high] - values[low]) * (place - static_cast<double>(low));
  };
  double sum = 0;
  for (double value : values) sum += value;
  return {sum / static_cast<double>(values.size()), percentile(0.50), percentile(0.99),
          values.back()};
}

Metrics compute(const std::vector<TaskSpec>& specs, const std::vector<TaskResult>& results,
                const std::vector<StepRecord>& steps) {
  Metrics metrics;
  std::vector<double> ttft, tpot, itl, e2el, plan;
  double first_arrival = INFINITY, last_end = 0;
  for (size_t i = 0; i < results.size(); ++i) {
    const TaskResult& r = results[i];
    const bool is_met = met(specs[i], r);
    add(metrics.all, specs[i].utility, is_met);
    add(metrics.classes[specs[i].class_name], specs[i].utility, is_met);
    ++metrics.finish[to_string(r.reason)];
    first_arrival = std::min(first_arrival, r.arrival);
    last_end = std::max(last_end, r.finish_time);
    const size_t n = r.tokens.size();
    metrics.output_tokens += static_cast<double>(n);
    if (n == 0) continue;
    const double first = r.tokens.front().time - r.arrival, last = r.tokens.back().time - r.arrival;
    ttft.push_back(first);
    if (n > 1) tpot.push_back((last - first) / static_cast<double>(n - 1));
    for (size_t k = 1; k < n; ++k) itl.push_back(r.tokens[k].time - r.tokens[k - 1].time);
    if (r.reason == FinishReason::stop || r.reason == FinishReason::length) e2el.push_back(last);
  }
  double step_seconds = 0, prefill_seconds = 0;
  for (const StepRecord& step : steps) {
    plan.push_back(step.plan_seconds);
    step_seconds += step.duration;
    // A step that mixes prefill and decode is divided by its tokens.
    prefill_seconds +=
        step.duration * share(step.prefill_tokens, step.prefill_tokens + step.decode_rows);
  }
  metrics.prefill_share = share(prefill_seconds, step_seconds);
  metrics.makespan = last_end - first_arrival;
  metrics.ttft = summarize(std::move(ttft));
  metrics.tpot = summarize(std::move(tpot));
  metrics.itl = summarize(std::move(itl));
  metrics.e2el = summarize(std::move(e2el));
  metrics.plan = summarize(std::move(plan));
  return metrics;
}

void print_table(const std::vector<std::pair<std::string, Metrics>>& policies) {
  size_t width = 6;
  for (const auto& [name, m] : policies) width = std::max(width, name.size());
  const int w = static_cast<int>(width);
  std::printf(
      "\n%-*s  SLO met  utility  tasks/s  tokens/s  TTFT p50    p99  TPOT p50    p99  E2EL mean"
      "  in prefill\n",
      w, "policy");
  for (const auto& [name, m] : policies) {
    std::printf(
        "%-*s  %5.1f %%  %5.1f %%  %7.3f  %8.1f  %8.0f %6.0f  %8.1f %6.1f  %9.0f  %8.1f %%\n", w,
        name.c_str(), 100 * share(m.all.met, m.all.submitted),
        100 * share(m.all.utility_met, m.all.utility), share(m.all.met, m.makespan),
        share(m.output_tokens, m.makespan), 1e3 * m.ttft.p50, 1e3 * m.ttft.p99, 1e3 * m.tpot.p50,
        1e3 * m.tpot.p99, 1e3 * m.e2el.mean, 100 * m.prefill_share);
  }
  std::printf("times in ms\n\n");
  for (const auto& [name, m] : policies) {
    std::printf("%-*s", w, name.c_str());
    for (const auto& [class_name, c] : m.classes) {
      std::printf("  %s %d/%d met", class_name.c_str(), c.met, c.submitted);
    }
    std::printf("\n");
  }
}

void print_tokens(const std::vector<TaskSpec>& specs, const std::vector<TaskResult>& results) {
  for (size_t i = 0; i < results.size(); ++i) {
    std::printf("task %zu (%s) %s:", i, specs[i].class_name.c_str(),
                met(specs[i], results[i]) ? "met" : "missed");
    for (const Token& token : results[i].tokens) {
      std::printf(" %.0f", 1e3 * (token.time - results[i].arrival));
    }
    std::printf(" ms\n");
  }
}

std::string json_string(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += std::string("\\") + c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char escaped[8];
      std::snprintf(escaped, sizeof escaped, "\\u%04x", static_cast<unsigned>(c));
      out += escaped;
    } else {
      out += c;
    }
  }
  return out + "\"";
}

void write_result(const std::string& path, const std::string& config,
                  const std::vector<std::pair<std::string, Metrics>>& policies) {
  std::ofstream out(path);
  out << "{\"config\": " << config << ",\n \"policies\": {";
  const char* comma = "\n  ";
  for (const auto& [name, m] : policies) {
    out << comma << json_string(name) << ": " << json_metrics(m);
    comma = ",\n  ";
  }
  out << "}}\n";
  if (!out.flush()) throw Error(ErrorKind::io, "--save-result", path, "a file that can be written");
}

}  // namespace slicellm::bench
