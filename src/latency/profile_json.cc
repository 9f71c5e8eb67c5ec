// Latency models as JSON: one object of strings, numbers and arrays of numbers.
#include <charconv>
#include <cmath>
#include <cstdio>
#include <initializer_list>
#include <map>
#include <string>

#include "latency/piecewise_model.h"
#include "latency/table_model.h"
#include "slicellm/error.h"

namespace slicellm {
namespace {

constexpr size_t kSampleWidth = 7;
constexpr size_t kMaxText = 1 << 24;  // bytes

std::string join(std::initializer_list<std::string_view> parts) {
  std::string result;
  for (std::string_view part : parts) result += part;
  return result;
}

[[noreturn]] void refuse(const std::string& value, const std::string& expected) {
  throw Error(ErrorKind::format, "latency profile", value, expected);
}

struct Value {
  std::string text;
  std::vector<double> numbers;  // a lone number, or an array's, flattened
  bool is_text = false;
};

// Reads exactly what the writers below produce; nested arrays are flattened.
class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {}

  std::map<std::string, Value> read() {
    std::map<std::string, Value> fields;
    expect('{');
    do {
      std::string key = string();
      expect(':');
      if (!fields.emplace(key, value()).second)
        refuse(join({"\"", key, "\" twice"}), "each key once");
    } while (take(','));
    expect('}');
    skip_space();
    if (at_ != text_.size()) refuse("text after the object", "its end");
    return fields;
  }

 private:
  void skip_space() {
    while (at_ < text_.size() && std::string_view(" \t\r\n").find(text_[at_]) != text_.npos) ++at_;
  }
  bool take(char c) {
    skip_space();
    if (at_ == text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (take(c)) return;
    std::string expected = "' '";
    expected[1] = c;
    refuse(at_ < text_.size() ? "something else at byte " + std::to_string(at_)
                              : std::string("the end of the text"),
           expected);
  }

  std::string string() {
    expect('"');
    std::string result;
    while (at_ < text_.size() && text_[at_] != '"') {
      char c = text_[at_++];
      if (c == '\\') {
        if (at_ == text_.size()) break;
        c = text_[at_++];
        if (c == 'n') {
          c = '\n';
        } else if (c != '"' && c != '\\' && c != '/') {
          refuse(std::string("the escape \\") + c, "\\\", \\\\ or \\n");
        }
      }
      result.push_back(c);
    }
    if (at_ == text_.size()) refuse("the end of the text", "'\"'");
    ++at_;
    return result;
  }

  void numbers(std::vector<double>& out, int depth) {
    if (!take('[')) {
      skip_space();
      double number = 0;
      const char* begin = text_.data() + at_;
      const auto result = std::from_chars(begin, text_.data() + text_.size(), number);
      if (result.ec != std::errc() || !std::isfinite(number)) {
        refuse("no number at byte " + std::to_string(at_), "a finite number");
      }
      at_ += static_cast<size_t>(result.ptr - begin);
      out.push_back(number);
      return;
    }
    if (depth == 2) refuse("arrays three deep", "at most two");
    if (take(']')) return;
    do {
      numbers(out, depth + 1);
    } while (take(','));
    expect(']');
  }

  Value value() {
    Value result;
    skip_space();
    if (at_ < text_.size() && text_[at_] == '"') {
      result.is_text = true;
      result.text = string();
    } else {
      numbers(result.numbers, 0);
    }
    return result;
  }

  std::string_view text_;
  size_t at_ = 0;
};

class Fields {
 public:
  explicit Fields(std::string_view text) : fields_(Reader(text).read()) {}

  const std::string& text(const char* key) const {
    const Value& value = get(key);
    if (!value.is_text) refuse(join({"\"", key, "\" without a string"}), "a string");
    return value.text;
  }
  const std::vector<double>& numbers(const char* key) const {
    const Value& value = get(key);
    if (value.is_text) refuse(join({"\"", key, "\" with a string"}), "numbers");
    return value.numbers;
  }
  double number(const char* key, double low, double high) const {
    const std::vector<double>& all = numbers(key);
    if (all.size() != 1 || !(all[0] >= low && all[0] <= high)) {
      refuse(join({"\"", key, "\" out of range"}),
             "a number from " + std::to_string(low) + " to " + std::to_string(high));
    }
    return all[0];
  }

 private:
  const Value& get(const char* key) const {
    auto it = fields_.find(key);
    if (it == fields_.end()) refuse(join({"no \"", key, "\""}), "that key");
    return it->second;
  }
  std::map<std::string, Value> fields_;
};

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.17g", value);
  return text;
}

std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') result.push_back('\\');
    if (c == '\n') {
      result += "\\n";
    } else if (static_cast<unsigned char>(c) >= 0x20) {
      result.push_back(c);
    }
  }
  return result + "\"";
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
  const std::vector<double>& flat = fields.numbers("samples");
  if (flat.empty() || flat.size() % kSampleWidth != 0) {
    refuse(std::to_string(flat.size()) + " numbers in \"samples\"", "rows of 7 numbers");
  }
  std::vector<LatencySample> samples;
  for (size_t i = 0; i < flat.size(); i += kSampleWidth) {
    samples.push_back({.step = {.tokens = count(flat[i]),
                                .rows = count(flat[i + 1]),
                                .context = flat[i + 2],
                                .chunk_work = flat[i + 3],
                                .swap_bytes = flat[i + 4],
                                .prefill_tokens = count(flat[i + 5])},
                       .seconds = flat[i + 6]});
  }
  const std::vector<double>& stored = fields.numbers("coefficients");
  NnlsVector coefficients;
  if (stored.size() != coefficients.size()) {
    refuse(std::to_string(stored.size()) + " coefficients", std::to_string(coefficients.size()));
  }
  for (size_t i = 0; i < stored.size(); ++i) {
    if (!(stored[i] >= 0 && stored[i] <= 1e9)) {
      refuse("a coefficient of " + number(stored[i]), "seconds from 0 to 1e9");
    }
    coefficients[i] = stored[i];
  }
  check_latency_samples(samples);
  return std::make_unique<PiecewiseModel>(std::move(samples), fields.text("provenance"),
                                          coefficients, fields.number("quantile", 1, 1e6));
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
  return join({"{\"kind\": \"piecewise\",\n \"provenance\": ", quoted(provenance_),
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
  const std::string& kind = fields.text("kind");
  try {
    if (kind == "piecewise") return read_piecewise(fields);
    if (kind == "table") {
      return std::make_unique<TableModel>(
          fields.numbers("decode_seconds"), fields.number("prefill", 0, 1e9),
          fields.number("prefill_per_token", 0, 1e9), fields.number("quantile", 1, 1e6));
    }
  } catch (const Error& e) {
    if (e.kind() == ErrorKind::format) throw;
    throw Error(ErrorKind::format, "latency profile", e.field() + " " + e.value(), e.expected());
  }
  refuse(join({"kind \"", kind, "\""}), "\"piecewise\" or \"table\"");
}

}  // namespace slicellm
