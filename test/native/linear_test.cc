// Packed linear layers against float64 arithmetic written from the definitions in tensor.h and
// linear_layout.h: all dtypes, instruction sets and odd shapes; bit-equality under any split.
#include "cpu/linear.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "check.h"
#include "slicellm/dtype.h"

namespace slicellm {
namespace {

using cpu::CpuLinear;
using cpu::Epilogue;
using cpu::Isa;
using cpu::LinearWorkspace;
using cpu::ThreadPool;

std::mt19937 random_bits(7);
float uniform(float low, float high) {
  return std::uniform_real_distribution<float>(low, high)(random_bits);
}

// A random weight, the float64 values that it stands for and the size of the terms that they are
// the sum of: minimum + scale * code cancels where minimum is not a multiple of scale.
struct TestWeight {
  Weight weight;
  std::vector<double> values, sizes;  // [rows, cols]
};

TestWeight float_weight(DType dtype, int64_t rows, int64_t cols) {
  TestWeight result;
  auto data = std::make_shared<std::vector<uint8_t>>(rows * cols * dtype_bits(dtype) / 8);
  for (int64_t i = 0; i < rows * cols; ++i) {
    const float v = uniform(-1, 1) * (i % 37 == 0 ? 1e-6f : 1);  // float16 subnormals among them
    if (dtype == DType::float32) {
      std::memcpy(data->data() + i * 4, &v, 4);
      result.values.push_back(v);
    } else {
      const bool half = dtype == DType::float16;
      const uint16_t bits = half ? float_to_half(v) : float_to_bfloat16(v);
      std::memcpy(data->data() + i * 2, &bits, 2);
      result.values.push_back(half ? half_to_float(bits) : bfloat16_to_float(bits));
    }
  }
  for (double v : result.values) result.sizes.push_back(std::abs(v));
  result.weight = {.name = "w",
                   .dtype = dtype,
                   .shape = {rows, cols},
                   .data = data->data(),
                   .data_bytes = data->size(),
                   .scale = {},
                   .minimum = {},
                   .owner = data};
  return result;
}

enum class Grid { compact, odd_scales, odd_minimums, constant };

TestWeight int_weight(DType dtype, int64_t rows, int64_t cols, int64_t group, Grid grid) {
  TestWeight result;
  Weight& w = result.weight;
  const int bits = dtype_bits(dtype), top = (1 << bits) - 1;
  auto data = std::make_shared<std::vector<uint8_t>>((rows * cols * bits + 7) / 8);
  w = {.name = "w",
       .dtype = dtype,
       .shape = {rows, cols},
       .group_size = group,
       .data = data->data(),
       .data_bytes = data->size(),
       .scale = {},
       .minimum = {},
       .owner = data};
  for (int64_t i = 0; i < rows * w.groups(); ++i) {
    float scale = uniform(0.001f, 0.01f);
    if (grid == Grid::compact) scale = half_to_float(float_to_half(scale));
    float minimum = -scale * static_cast<float>(random_bits() % (top + 1));
    if (grid == Grid::odd_minimums) minimum *= 1.01f;
    if (grid == Grid::constant && i % 3 == 0) {
      scale = 0;
      minimum = i % 2 == 0 ? 0.0f : 0.125f;
    }
    w.scale.push_back(scale);
    w.minimum.push_back(minimum);
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      const int64_t i = r * cols + c, g = r * w.groups() + c / group;
      const auto code = static_cast<uint8_t>(random_bits() % (top + 1));
      if (bits == 8) {
        (*data)[i] = code;
      } else {
        (*data)[i / 2] |= static_cast<uint8_t>(i % 2 == 0 ? code << 4 : code);
      }
      const double minimum = w.minimum[g], step = double{w.scale[g]} * code;
      result.values.push_back(minimum + step);
      result.sizes.push_back(grid == Grid::compact ? std::abs(minimum + step)
                                                   : std::abs(minimum) + step);
    }
  }
  return result;
}

std::vector<float> random_input(int64_t n, int64_t cols) {
  std::vector<float> x(n * cols);
  for (int64_t i = 0; i < n * cols; ++i) {
    x[i] = uniform(-1, 1) * (i % 61 == 0 ? 20 : 1);  // outliers
    if (i / 40 % 7 == 3) x[i] = 0;
  }
  return x;
}

// Activations as the int paths see them: per weight group, blocks of at most 64 columns, each with
// codes -127..127 of step peak / 127. Also the step of each column.
void quantize(const std::vector<float>& x, int64_t cols, int64_t group, std::vector<double>* value,
              std::vector<double>* step) {
  for (size_t row = 0; row < x.size(); row += cols) {
    for (int64_t begin = 0; begin < cols; begin += group) {
      for (int64_t k = begin; k < std::min(begin + group, cols); k += 64) {
        const int64_t end = std::min({k + 64, begin + group, cols});
        float peak = 0;
        for (int64_t i = k; i < end; ++i) peak = std::max(peak, std::abs(x[row + i]));
        for (int64_t i = k; i < end; ++i) {
          const float code = peak == 0 ? 0 : std::nearbyint(x[row + i] * (127.0f / peak));
          value->push_back(double{code} * (double{peak} / 127));
          step->push_back(double{peak} / 127);
        }
      }
    }
  }
}

struct Run {
  Isa isa;
  int threads;
  ThreadPool pool{threads};
  LinearWorkspace workspace{};
  cpu::WeightArena arena{};

  std::unique_ptr<CpuLinear> pack(const std::vector<Weight>& matrices,
                                  const std::vector<std::vector<float>>& biases,
                                  ActivationType activation, bool gated = false) {
    return cpu::pack_linear(pool, isa, arena, matrices, biases, activation, gated);
  }
  std::vector<float> multiply(const CpuLinear& linear, const std::vector<float>& x,
                              std::vector<float> out = {}, Epilogue epilogue = Epilogue::store,
                              float alpha = 0) {
    const auto n = static_cast<int64_t>(x.size()) / linear.in_features();
    const int64_t width = linear.out_features() / (linear.gated() ? 2 : 1);
    out.resize(n * width);
    cpu::run_linear(pool, isa, workspace, linear, {.x = x.data(), .n = n},
                    {.epilogue = epilogue, .alpha = alpha, .out = out.data()});
    return out;
  }
};

// Compares a product with float64. The tolerance is relative to the sum of absolute products; with
// quantised activations half a step per column is allowed against the plain input as well.
void compare(const std::string& what, Isa isa, const TestWeight& w, ActivationType activation,
             int64_t n) {
  const int64_t rows = w.weight.rows(), cols = w.weight.cols();
  Run run{isa, 2};
  std::vector<float> bias(rows);
  for (float& b : bias) b = uniform(-1, 1);
  const auto linear = run.pack({w.weight}, {bias}, activation);
  CHECK(linear->in_features() == cols && linear->out_features() == rows);
  const std::vector<float> x = random_input(n, cols);
  const std::vector<float> y = run.multiply(*linear, x);
  std::vector<double> seen(x.begin(), x.end()), step(x.size(), 0);
  if (is_quantized(w.weight.dtype) && activation != ActivationType::float32) {
    seen.clear();
    step.clear();
    quantize(x, cols, std::min(w.weight.group_size, cols), &seen, &step);
  }
  double worst = 0;
  bool within_steps = true;
  for (int64_t t = 0; t < n; ++t) {
    for (int64_t r = 0; r < rows; ++r) {
      double sum = bias[r], size = std::abs(bias[r]), plain = bias[r], allowed = 0;
      for (int64_t k = 0; k < cols; ++k) {
        const double v = w.values[r * cols + k];
        sum += v * seen[t * cols + k];
        plain += v * x[t * cols + k];
        size += w.sizes[r * cols + k] * std::abs(seen[t * cols + k]);
        allowed += std::abs(v) * step[t * cols + k] * 0.5001;
      }
      const double got = y[t * rows + r];
      worst = std::max(worst, std::abs(got - sum) / size);
      within_steps &= std::abs(got - plain) <= allowed + 2e-6 * size;
    }
  }
  const std::string label = what + " " + cpu::to_string(isa) + " " + std::to_string(rows) + "x" +
                            std::to_string(cols) + " n=" + std::to_string(n);
  CHECK_MESSAGE(worst < 2e-6, label + ": error " + std::to_string(worst * 1e6) + "e-6");
  CHECK_MESSAGE(within_steps, label + ": more than half a step from the plain product");
}

const std::vector<std::pair<int64_t, int64_t>> kShapes = {
    {1, 1}, {3, 5}, {16, 32}, {17, 33}, {40, 100}, {5, 130}, {33, 896}, {70, 257}, {8, 2051}};

void test_float_types() {
  for (Isa isa : cpu::supported_isas()) {
    for (DType dtype : {DType::float32, DType::float16, DType::bfloat16}) {
      for (auto [rows, cols] : kShapes) {
        for (int64_t n : {1, 5, 13}) {
          compare(to_string(dtype), isa, float_weight(dtype, rows, cols), ActivationType::automatic,
                  n);
        }
      }
    }
  }
}

void test_int_types() {
  for (Isa isa : cpu::supported_isas()) {
    for (DType dtype : {DType::int8, DType::int4}) {
      for (auto [rows, cols] : kShapes) {
        for (int64_t group : std::set<int64_t>{20, 32, 64, 128, cols}) {
          const Grid grid = static_cast<Grid>(random_bits() % 4);
          const TestWeight w = int_weight(dtype, rows, cols, group, grid);
          const std::string what = to_string(dtype) + " group " + std::to_string(group) + " grid " +
                                   std::to_string(static_cast<int>(grid));
          const auto n = static_cast<int64_t>(1 + random_bits() % 11);
          compare(what + " int8", isa, w, ActivationType::automatic, n);
          compare(what + " float32", isa, w, ActivationType::float32, n);
        }
      }
    }
  }
}

// The product of row r and one token's x in integers, for minimums that are halves and scales of 1.
float integer_product(const Weight& w, int64_t r, const float* x) {
  const auto* data = static_cast<const uint8_t*>(w.data);
  int64_t halves = 0;
  for (int64_t k = 0; k < w.cols(); ++k) {
    const int64_t i = r * w.cols() + k;
    const int code = w.dtype == DType::int8 ? data[i]
                     : i % 2 == 0           ? data[i / 2] >> 4
                                            : data[i / 2] & 0xf;
    const auto twice_minimum =
        static_cast<int64_t>(2 * w.minimum[r * w.groups() + k / w.group_size]);
    halves += (twice_minimum + 2 * code) * static_cast<int64_t>(x[k]);
  }
  return static_cast<float>(halves) / 2;
}

// Numbers that floats hold exactly, so that integer arithmetic tells every bit of the result:
// scales of 1, minimums in halves, and activations that are their own codes.
void test_exact_dots(DType dtype, int64_t group, bool compact) {
  constexpr int64_t kRows = 21, kCols = 150, kTokens = 17;
  const int top = dtype == DType::int8 ? 255 : 15;
  TestWeight w = int_weight(dtype, kRows, kCols, group, Grid::compact);
  for (float& scale : w.weight.scale) scale = 1;
  for (float& minimum : w.weight.minimum) {
    minimum = (compact ? 0.0f : 0.5f) - static_cast<float>(random_bits() % (top + 1));
  }
  std::vector<float> x(kTokens * kCols), expected;
  for (size_t i = 0; i < x.size(); ++i) {
    const bool peak = i % kCols % group % 64 == 0;  // once in each block
    x[i] = peak ? 127 : static_cast<float>(random_bits() % 255) - 127;
  }
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t r = 0; r < kRows; ++r) {
      expected.push_back(integer_product(w.weight, r, x.data() + t * kCols));
    }
  }
  for (Isa isa : cpu::supported_isas()) {
    Run run{isa, 1};
    const auto linear = run.pack({w.weight}, {}, ActivationType::automatic);
    CHECK(linear->layout().compact == compact);
    for (int64_t n = 1; n <= kTokens; ++n) {
      const auto y = run.multiply(*linear, {x.begin(), x.begin() + n * kCols});
      CHECK_MESSAGE(std::equal(y.begin(), y.end(), expected.begin()),
                    std::string("not exact: ") + cpu::to_string(isa) + " " + to_string(dtype) +
                        " group " + std::to_string(group) + (compact ? " compact" : "") +
                        " n=" + std::to_string(n));
    }
  }
}

void test_exact_dots() {
  for (DType dtype : {DType::int8, DType::int4}) {
    for (int64_t group : {20, 32, 64, 150}) {
      for (bool compact : {true, false}) test_exact_dots(dtype, group, compact);
    }
  }
}

// Instruction sets that fuse multiplication and addition do the same operations in the same order.
void test_same_bits() {
  constexpr int64_t kRows = 50, kCols = 300, kTokens = 13;
  for (const TestWeight& w : {int_weight(DType::int8, kRows, kCols, kCols, Grid::compact),
                              int_weight(DType::int8, kRows, kCols, 32, Grid::odd_minimums),
                              int_weight(DType::int4, kRows, kCols, 32, Grid::compact),
                              int_weight(DType::int4, kRows, kCols, 128, Grid::odd_scales)}) {
    const std::vector<float> x = random_input(kTokens, kCols);
    std::vector<float> first;
    for (Isa isa : cpu::supported_isas()) {
      if (isa == Isa::portable) continue;
      Run run{isa, 1};
      const auto linear = run.pack({w.weight}, {}, ActivationType::automatic);
      const auto y = run.multiply(*linear, x);
      if (first.empty()) first = y;
      CHECK_MESSAGE(y == first, std::string("bits differ between instruction sets: ") +
                                    cpu::to_string(isa) + " " + to_string(w.weight.dtype));
    }
  }
}

// A tall stack over a deep row: rounding must not grow with the width.
void test_deep_rows() {
  for (Isa isa : cpu::supported_isas()) {
    compare("deep", isa, float_weight(DType::float32, 3, 16384), ActivationType::automatic, 2);
    compare("deep", isa, int_weight(DType::int8, 3, 16384, 16384, Grid::compact),
            ActivationType::float32, 2);
  }
}

std::vector<TestWeight> one_of_each(int64_t rows, int64_t cols) {
  return {float_weight(DType::float32, rows, cols),
          float_weight(DType::float16, rows, cols),
          float_weight(DType::bfloat16, rows, cols),
          int_weight(DType::int8, rows, cols, cols, Grid::compact),
          int_weight(DType::int4, rows, cols, 32, Grid::compact),
          int_weight(DType::int4, rows, cols, 48, Grid::odd_scales)};
}

// Every token of any batch, on any number of threads, gives the bits that it gives alone.
void test_invariance() {
  constexpr int64_t kRows = 150, kCols = 200, kTokens = 41;
  for (Isa isa : cpu::supported_isas()) {
    for (const TestWeight& w : one_of_each(kRows, kCols)) {
      for (ActivationType activation : {ActivationType::automatic, ActivationType::float32}) {
        const std::vector<float> x = random_input(kTokens, kCols);
        Run alone{isa, 1};
        const auto linear = alone.pack({w.weight}, {}, activation);
        std::vector<float> expected;
        for (int64_t t = 0; t < kTokens; ++t) {
          const auto y =
              alone.multiply(*linear, {x.begin() + t * kCols, x.begin() + (t + 1) * kCols});
          expected.insert(expected.end(), y.begin(), y.end());
        }
        for (int threads = 1; threads <= 4; ++threads) {
          Run run{isa, threads};
          const auto packed = run.pack({w.weight}, {}, activation);
          std::vector<float> got;
          for (int64_t t = 0; t < kTokens;) {
            const int64_t n =
                threads == 1 ? kTokens : std::min<int64_t>(1 + random_bits() % 20, kTokens - t);
            const auto y =
                run.multiply(*packed, {x.begin() + t * kCols, x.begin() + (t + n) * kCols});
            got.insert(got.end(), y.begin(), y.end());
            t += n;
          }
          CHECK_MESSAGE(
              got.size() == expected.size() &&
                  std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) == 0,
              std::string("bits differ: ") + cpu::to_string(isa) + " " + to_string(w.weight.dtype) +
                  " threads " + std::to_string(threads));
        }
      }
    }
  }
}

void test_epilogues_and_stacks() {
  constexpr int64_t kInner = 37, kCols = 64, kTokens = 11;
  const auto silu = [](double v) { return v / (1 + std::exp(-v)); };
  const auto gelu = [](double v) {
    return 0.5 * v * (1 + std::tanh(std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v)));
  };
  for (Isa isa : cpu::supported_isas()) {
    Run run{isa, 3};
    const TestWeight gate = float_weight(DType::float16, kInner, kCols);
    const TestWeight up = float_weight(DType::float16, kInner, kCols);
    std::vector<float> bias(kInner);
    for (float& b : bias) b = uniform(-1, 1);
    const std::vector<float> x = random_input(kTokens, kCols);
    const auto product = [&](const TestWeight& w, int64_t t, int64_t r) {
      double sum = 0;
      for (int64_t k = 0; k < kCols; ++k) sum += w.values[r * kCols + k] * x[t * kCols + k];
      return sum;
    };
    const auto plain = run.pack({gate.weight, up.weight}, {{}, bias}, ActivationType::automatic);
    const auto gated =
        run.pack({gate.weight, up.weight}, {{}, bias}, ActivationType::automatic, true);
    const std::vector<float> old = random_input(kTokens, 2 * kInner);
    const auto stored = run.multiply(*plain, x);
    const auto added = run.multiply(*plain, x, old, Epilogue::add, 1.5f);
    const auto gelus = run.multiply(*plain, x, {}, Epilogue::gelu_tanh);
    const auto silus = run.multiply(*gated, x, {}, Epilogue::silu_gate);
    for (int64_t t = 0; t < kTokens; ++t) {
      for (int64_t r = 0; r < kInner; ++r) {
        const double g = product(gate, t, r), u = product(up, t, r) + bias[r];
        const int64_t i = t * 2 * kInner + r, j = i + kInner;
        CHECK(std::abs(stored[i] - g) < 1e-4 && std::abs(stored[j] - u) < 1e-4);
        CHECK(std::abs(added[j] - (1.5 * old[j] + u)) < 1e-4);
        CHECK(std::abs(gelus[i] - gelu(g)) < 2e-4);
        CHECK(std::abs(silus[t * kInner + r] - silu(g) * u) < 1e-3 * (1 + std::abs(g * u)));
      }
    }
    CHECK(test::throws(ErrorKind::invalid_argument, "linear", [&] { run.multiply(*gated, x); }));
  }
}

// What is not finite in a row shows in that row's results and nowhere else.
void test_not_finite() {
  for (Isa isa : cpu::supported_isas()) {
    for (const TestWeight& w : one_of_each(20, 96)) {
      Run run{isa, 1};
      const auto linear = run.pack({w.weight}, {}, ActivationType::automatic);
      std::vector<float> x = random_input(3, 96);
      x[96 + 50] = std::nanf("");
      const auto y = run.multiply(*linear, x);
      for (int64_t r = 0; r < 20; ++r) {
        CHECK(std::isfinite(y[r]) && std::isnan(y[20 + r]) && std::isfinite(y[40 + r]));
      }
      const auto tiny = run.multiply(*linear, std::vector<float>(96, 1e-38f));
      for (float v : tiny) CHECK(std::abs(v) < 1e-35f);
    }
  }
}

void test_refusals() {
  Run run{Isa::portable, 1};
  const TestWeight a = float_weight(DType::float16, 4, 8), b = float_weight(DType::float16, 4, 9);
  const auto pack = [&](std::vector<Weight> w, std::vector<std::vector<float>> bias, bool gated) {
    return [&run, w, bias, gated] { run.pack(w, bias, ActivationType::automatic, gated); };
  };
  CHECK(test::throws(ErrorKind::unsupported, "w", pack({a.weight, b.weight}, {}, false)));
  CHECK(test::throws(ErrorKind::unsupported, "w", pack({a.weight}, {{1, 2, 3}}, false)));
  CHECK(test::throws(ErrorKind::invalid_argument, "matrices", pack({}, {}, false)));
  Weight odd = float_weight(DType::float16, 3, 8).weight;
  CHECK(test::throws(ErrorKind::unsupported, "w", pack({odd}, {}, true)));
  Weight cut = a.weight;
  cut.data_bytes -= 1;
  CHECK(test::throws(ErrorKind::unsupported, "w", pack({cut}, {}, false)));
  TestWeight q = int_weight(DType::int4, 4, 64, 32, Grid::compact);
  q.weight.scale.pop_back();
  CHECK(test::throws(ErrorKind::unsupported, "w", pack({q.weight}, {}, false)));
}

}  // namespace
}  // namespace slicellm

int main() {
  slicellm::test_float_types();
  slicellm::test_int_types();
  slicellm::test_exact_dots();
  slicellm::test_same_bits();
  slicellm::test_deep_rows();
  slicellm::test_invariance();
  slicellm::test_epilogues_and_stacks();
  slicellm::test_not_finite();
  slicellm::test_refusals();
  return slicellm::test::check_result();
}
