// Latency models as JSON: one object of strings, numbers and arrays of numbers.
#include <charconv>
#include <cmath>
#include <cstdio>
#include <initializer_list>
#include <string>

#include "format/json.h"
#include "latency/piecewise_model.h"
#include "latency/table_model.h"
#include "slicellm/error.h"

namespace slicellm {
namespace {

constexpr size_t kSampleWidth = 7;
constexpr std::string_view kField = "latency profile";
constexpr size_t kMaxText = 1 << 24;  // bytes

std::string join(std::initializer_list<std::string_view> parts) {
  std::string result;
  for (std::string_view part : parts) result += part;
  return result;
}

[[noreturn]] void refuse(const std::string& value, const std::string& expected) {
  throw Error(ErrorKind::format, std::string(kField), value, expected);
}

// Typed access to the members of the profile's object.
class Fields {
 public:
  explicit Fields(std::string_view text) : root_(parse_json(text, kField)) {
    root_.as_object(kField);
  }

  const std::string& text(std::string_view key) const { return get(key).as_string(kField); }
  std::vector<double> numbers(std::string_view key) const { return to_numbers(get(key)); }
  std::vector<std::vector<double>> rows(std::string_view key) const {
    std::vector<std::vector<double>> result;
    for (const JsonValue& row : get(key).as_array(kField)) result.push_back(to_numbers(row));
    return result;
  }
  double number(std::string_view key, double low, double high) const {
    const double value = to_number(get(key));
    if (!(value >= low && value <= high)) {
      refuse(join({"\"", key, "\" out of range"}),
             "a number from " + std::to_string(low) + " to " + std::to_string(high));
    }
    return value;
  }

 private:
  const JsonValue& get(std::string_view key) const { return root_.require(key, kField); }

  static double to_number(const JsonValue& value) {
    double number = 0;
    const char* end = value.text.data() + value.text.size();
    if (value.kind != JsonValue::Kind::number ||
        std::from_chars(value.text.data(), end, number).ec != std::errc()) {
      refuse(join({"\"", value.text, "\""}), "a number that fits a double");
    }
    return number;
  }
  static std::vector<double> to_numbers(const JsonValue& value) {
    std::vector<double> result;
    for (const JsonValue& item : value.as_array(kField)) result.push_back(to_number(item));
    return result;
  }

  JsonValue root_;
};

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.17g", value);
  return text;
}

template <typename Range>
std::string list(const Range& values) {
  std::string result = "[";
  for (double value : values) {
    if (result.size() > 1) result += ", ";
    result += number(value);
  }
  result += "]";
  return result;
}

int32_t count(double value) {
  if (!(value >= 0 && value <= 1 << 30) || value != std::floor(value)) {
    refuse("a count of " + number(value), "whole numbers from 0 to 2^30");
  }
  return static_cast<int32_t>(value);
}

std::unique_ptr<LatencyModel> read_piecewise(const Fields& fields) {
  std::vector<LatencySample> samples;
  for (const std::vector<double>& row : fields.rows("samples")) {
    if (row.size() != kSampleWidth) {
      refuse("a sample of " + std::to_string(row.size()) + " numbers", "7 numbers");
    }
    samples.push_back({.step = {.tokens = count(row[0]),
                                .rows = count(row[1]),
                                .context = row[2],
                                .chunk_work = row[3],
                                .swap_bytes = row[4],
                                .prefill_tokens = count(row[5])},
                       .seconds = row[6]});
  }
  const std::vector<double> stored = fields.numbers("coefficients");
  NnlsVector coefficients;
  if (stored.size() != coefficients.size()) {
    refuse(std::to_string(stored.size()) + " coefficients", std::to_string(coefficients.size()));
  }
  for (size_t i = 0; i < stored.size(); ++i) {
    // At most what the slowest sample (1e9 s) makes of the least feature (0.5), and some rounding.
    if (!(stored[i] >= 0 && stored[i] <= 2.1e9)) {
      refuse("a coefficient of " + number(stored[i]), "seconds from 0 to 2.1e9");
    }
    coefficients[i] = stored[i];
  }
  check_latency_samples(samples);
  return std::make_unique<PiecewiseModel>(std::move(samples), fields.text("provenance"),
                                          coefficients,
                                          fields.number("quantile", 1, ResidualQuantile::kMost));
}

}  // namespace

std::string PiecewiseModel::to_json() const {
  std::string samples;
  for (const LatencySample& s : samples_) {
    const double row[kSampleWidth] = {static_cast<double>(s.step.tokens),
                                      static_cast<double>(s.step.rows),
                                      s.step.context,
                                      s.step.chunk_work,
                                      s.step.swap_bytes,
                                      static_cast<double>(s.step.prefill_tokens),
                                      s.seconds};
    samples += samples.empty() ? "\n  " : ",\n  ";
    samples += list(row);
  }
  return join({"{\"kind\": \"piecewise\",\n \"provenance\": ", json_quote(provenance_),
               ",\n \"quantile\": ", number(residuals_.ratio()), ",\n \"coefficients\": ",
               list(coefficients_), ",\n \"samples\": [", samples, "]}\n"});
}

std::string TableModel::to_json() const {
  return join({"{\"kind\": \"table\",\n \"quantile\": ", number(residuals_.ratio()),
               ",\n \"decode_seconds\": ", list(decode_seconds_), ",\n \"prefill\": ",
               number(prefill_), ",\n \"prefill_per_token\": ", number(prefill_per_token_), "}\n"});
}

std::unique_ptr<LatencyModel> latency_model_from_json(std::string_view text) {
  if (text.size() > kMaxText) refuse(std::to_string(text.size()) + " bytes", "at most 16 MiB");
  const Fields fields(text);
  const std::string kind = fields.text("kind");
  try {
    if (kind == "piecewise") return read_piecewise(fields);
    if (kind == "table") {
      return std::make_unique<TableModel>(fields.numbers("decode_seconds"),
                                          fields.number("prefill", 0, 1e9),
                                          fields.number("prefill_per_token", 0, 1e9),
                                          fields.number("quantile", 1, ResidualQuantile::kMost));
    }
  } catch (const Error& e) {
    if (e.kind() == ErrorKind::format) throw;
    throw Error(ErrorKind::format, std::string(kField), e.field() + " " + e.value(), e.expected());
  }
  refuse(join({"kind \"", kind, "\""}), "\"piecewise\" or \"table\"");
}

}  // namespace slicellm
