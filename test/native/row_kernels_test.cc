// Norms, activation functions and embedding lookup against float64.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/ops_cpu.h"
#include "slicellm/error.h"

namespace slicellm {
namespace {

using Random = std::mt19937;
using cpu::Isa;

std::vector<float> random_row(int64_t count, float size, float offset, Random& random) {
  std::normal_distribution<float> normal(offset, size);
  std::vector<float> row(count);
  for (float& x : row) x = normal(random);
  return row;
}

double worst_error(const std::vector<float>& got, const std::vector<double>& expected) {
  double worst = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double error = std::abs(got[i] - expected[i]) / (1e-3 + std::abs(expected[i]));
    worst = error <= worst ? worst : error;  // keeps NaN
  }
  return worst;
}

void check_norms(Isa isa, Random& random) {
  for (const int64_t width : {1, 3, 17, 100, 128, 896, 2049}) {
    for (const NormKind kind : {NormKind::rms, NormKind::layer}) {
      if (kind == NormKind::layer && width == 1) continue;  // 0/eps: nothing to compare
      NormWeights norm{kind, 1e-5f, random_row(width, 1, 1, random), {}};
      if (kind == NormKind::layer) norm.bias = random_row(width, 1, 0, random);
      const std::vector<float> x = random_row(width, 3, 0.5f, random);
      double mean = 0, square = 0;
      if (kind == NormKind::layer) {
        for (const float v : x) mean += v / static_cast<double>(width);
      }
      for (const float v : x) square += (v - mean) * (v - mean) / static_cast<double>(width);
      std::vector<double> expected;
      for (int64_t i = 0; i < width; ++i) {
        const double bias = kind == NormKind::layer ? norm.bias[i] : 0;
        expected.push_back((x[i] - mean) / std::sqrt(square + 1e-5) * norm.weight[i] + bias);
      }
      std::vector<float> out(width), in_place = x;
      cpu::row_kernels(isa).norm(x.data(), width, norm, out.data());
      cpu::row_kernels(isa).norm(in_place.data(), width, norm, in_place.data());
      const std::string what = std::string(to_string(isa)) + ", width " + std::to_string(width);
      // Where the bias nearly cancels the rest, errors are relative to what was added: 1e-3 above.
      CHECK_MESSAGE(worst_error(out, expected) < 1e-3, what);
      CHECK_MESSAGE(out == in_place, what);
      std::vector<double> sizes(expected);
      double difference = 0, size = 0;
      for (int64_t i = 0; i < width; ++i) {
        difference += std::pow(out[i] - expected[i], 2);
        size += expected[i] * expected[i];
      }
      CHECK_MESSAGE(std::sqrt(difference / size) < 5e-7, what);
    }
  }
}

using Apply = std::function<void(const float* x, const float* up, int64_t count, float* out)>;

void check_activation(const std::string& what, const Apply& apply,
                      const std::function<double(double, double)>& exact, Random& random) {
  std::vector<float> x = random_row(1003, 4, 0, random), up = random_row(1003, 1, 0, random);
  const float special[] = {0.0f, -0.0f, 1e-30f, -1e-30f, 20,    -20,   80,
                           -80,  86.9f, -87.1f, 1e4f,    -1e4f, 1e30f, -1e9f};
  std::copy(std::begin(special), std::end(special), x.begin() + 200);
  std::vector<double> expected;
  for (size_t i = 0; i < x.size(); ++i) expected.push_back(exact(x[i], up[i]));
  std::vector<float> out(x.size());
  apply(x.data(), up.data(), static_cast<int64_t>(x.size()), out.data());
  for (size_t i = 0; i < x.size(); ++i) {
    // A tiny result of a large negative x may lose digits: e^x passes on the rounding of its x.
    const double error = std::abs(out[i] - expected[i]);
    CHECK_MESSAGE(error <= 1e-6 * std::abs(expected[i]) + 3e-10,
                  what + " at " + std::to_string(x[i]) + ": " + std::to_string(out[i]));
  }
  // An element does not depend on its place or on the row's length; the output may be the input.
  for (const int64_t begin : {0, 1, 5, 190, 995}) {
    std::vector<float> part(x.begin() + begin, x.end());
    apply(part.data(), up.data() + begin, static_cast<int64_t>(part.size()), part.data());
    CHECK_MESSAGE(std::memcmp(part.data(), out.data() + begin, part.size() * sizeof(float)) == 0,
                  what);
  }
  x[0] = NAN;
  apply(x.data(), up.data(), 1, out.data());
  CHECK_MESSAGE(std::isnan(out[0]), what);
}

void check_activations(Isa isa, Random& random) {
  const cpu::RowKernels& kernels = cpu::row_kernels(isa);
  check_activation(
      std::string("silu_gate, ") + to_string(isa), kernels.silu_gate,
      [](double x, double up) { return x / (1 + std::exp(-x)) * up; }, random);
  check_activation(
      std::string("gelu_tanh, ") + to_string(isa),
      [&](const float* x, const float*, int64_t count, float* out) {
        kernels.gelu_tanh(x, count, out);
      },
      [](double x, double) {
        const double u = std::sqrt(2 / 3.14159265358979) * (x + 0.044715 * x * x * x);
        return x / (1 + std::exp(-2 * u));  // x/2 (1 + tanh u) without cancellation
      },
      random);
}

// Rows of all dtypes, among them int4 rows that start in the middle of a byte.
void check_embedding(Random& random) {
  cpu::ThreadPool pool(3);
  constexpr int64_t kRows = 37, kCols = 45;
  const std::vector<float> values = random_row(kRows * kCols, 1, 0, random);
  Weight table;
  table.name = "embedding";
  table.shape = {kRows, kCols};
  table.data = values.data();
  table.data_bytes = values.size() * sizeof(float);
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < 100; ++i) ids.push_back(i * 17 % kRows);
  for (const char* dtype : {"float32", "float16", "bfloat16", "int8", "int4", "int4g16"}) {
    Weight converted = convert(table, parse_dtype(dtype));
    // Files do not align their tensors.
    std::vector<char> unaligned(converted.data_bytes + 1);
    std::memcpy(unaligned.data() + 1, converted.data, converted.data_bytes);
    converted.data = unaligned.data() + 1;
    const auto embedding = cpu::make_embedding(converted);
    CHECK(embedding->rows() == kRows && embedding->cols() == kCols);
    std::vector<float> out(ids.size() * kCols);
    cpu::embed_rows(pool, ids, *embedding, out.data());
    const double step = converted.dtype == DType::int4   ? 0.6
                        : converted.dtype == DType::int8 ? 0.04
                        : converted.dtype == DType::float32
                            ? 0
                            : 0.02;  // half a quantisation step of values up to 4
    double worst = 0;
    for (size_t i = 0; i < out.size(); ++i) {
      const double error = std::abs(out[i] - values[ids[i / kCols] * kCols + i % kCols]);
      worst = error <= worst ? worst : error;
    }
    CHECK_MESSAGE(worst <= step, std::string(dtype) + ": error " + std::to_string(worst));
    for (const int32_t bad : {-1, 37, 2147483647}) {
      const std::vector<int32_t> tokens = {0, bad};
      CHECK(test::throws(ErrorKind::invalid_argument, "token",
                         [&] { cpu::embed_rows(pool, tokens, *embedding, out.data()); }));
    }
  }
}

}  // namespace
}  // namespace slicellm

int main() {
  using namespace slicellm;
  Random random(7);
  for (const Isa isa : cpu::supported_isas()) {
    check_norms(isa, random);
    check_activations(isa, random);
  }
  check_embedding(random);
  return test::check_result();
}
