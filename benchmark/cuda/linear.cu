// Times the linear kernels beside the machine's roofline: for each shape and weight type, batches
// from one token to a prefill chunk. The weights go round among copies that together are more than
// four times the L2 cache, so that each use reads them from memory. Prints one JSON object; each
// result is checked against float64 sums of the decoded weights, and a fault makes the exit status
// 1.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "benchmark/cuda/measure.h"
#include "cuda/linear.h"
#include "cuda/upload.h"
#include "slicellm/dtype.h"
#include "slicellm/error.h"

namespace slicellm::cuda {
namespace {

constexpr const char* kHelp =
    "cuda_linear_benchmark [--shapes INxOUT,...] [--dtypes int4g128,int8,float16,...]\n"
    "                      [--batches 1,8,...]\n";
constexpr double kSeconds = 20e-3;  // of each measurement
constexpr int kRepeats = 5;
constexpr int kCheckedRows = 16;
constexpr double kTolerance = 1e-3;  // of the checked results' norm

struct Shape {
  int64_t in, out;
};

struct Options {
  std::vector<Shape> shapes = {{4096, 4096}, {4096, 14336}, {14336, 4096}};
  std::vector<std::string> dtypes = {"int4g128", "int8", "float16"};
  std::vector<int> batches = {1, 2, 4, 8, 16, 32, 64, 2048};
};

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  size_t at = 0;
  for (size_t comma; (comma = text.find(',', at)) != std::string::npos; at = comma + 1) {
    parts.push_back(text.substr(at, comma - at));
  }
  parts.push_back(text.substr(at));
  return parts;
}

int64_t positive(const std::string& text, const char* flag) {
  char* end = nullptr;
  const long long value = std::strtoll(text.c_str(), &end, 10);
  if (text.empty() || *end != '\0' || value < 1 || value > 1 << 20) {
    throw Error(ErrorKind::invalid_argument, flag, '"' + text + '"', "a number 1..1048576");
  }
  return value;
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "-h" || flag == "--help") {
      std::fputs(kHelp, stdout);
      std::exit(0);
    }
    if (i + 1 == argc) throw Error(ErrorKind::invalid_argument, flag, "nothing", "a value");
    const std::vector<std::string> values = split(argv[++i]);
    if (flag == "--shapes") {
      options.shapes.clear();
      for (const std::string& v : values) {
        const size_t x = std::min(v.find('x'), v.size());
        options.shapes.push_back({positive(v.substr(0, x), "--shapes"),
                                  positive(v.substr(std::min(x + 1, v.size())), "--shapes")});
      }
    } else if (flag == "--dtypes") {
      options.dtypes = values;
    } else if (flag == "--batches") {
      options.batches.clear();
      for (const std::string& v : values) {
        options.batches.push_back(static_cast<int>(positive(v, "--batches")));
      }
    } else {
      throw Error(ErrorKind::invalid_argument, flag, "an unknown flag", kHelp);
    }
  }
  return options;
}

// A matrix [rows, cols] of normally distributed values from a small generator: millions a second.
std::vector<float> random_values(size_t count, uint64_t seed) {
  std::vector<float> values(count);
  for (float& v : values) {
    float sum = 0;  // of four uniform numbers
    for (int i = 0; i < 4; ++i) {
      seed = seed * 6364136223846793005u + 1442695040888963407u;
      sum += static_cast<float>(seed >> 40) * 0x1p-24f - 0.5f;
    }
    v = sum * 1.7320508f;  // variance 1
  }
  return values;
}

// One layer with its copies on the device, and what a run of it should give.
class Case {
 public:
  Case(const Meter& meter, const Weight& weight, int most_tokens, uint64_t seed)
      : meter_(meter), weight_(weight) {
    const int threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
    const LinearPacker packer({&weight, 1}, {}, false, threads);
    layout_ = packer.layout();
    stride_ = (layout_.bytes + 255) / 256 * 256;
    copies_ = static_cast<int>(4 * meter.device().l2_bytes / layout_.bytes) + 2;
    weights_ = DeviceBuffer(meter.memory(), stride_ * copies_, "weights");
    const DeviceBuffer packed =
        Uploader(meter.stream(), meter.memory(), meter.device().integrated, threads).linear(packer);
    for (int i = 0; i < copies_; ++i) {
      meter.stream().copy(weights_.get() + i * stride_, packed.get(), layout_.bytes,
                          cudaMemcpyDeviceToDevice);
    }
    meter.stream().synchronize();
    fill_input(most_tokens, seed);
    out_ =
        DeviceBuffer(meter.memory(), static_cast<size_t>(most_tokens) * layout_.out * 4, "output");
    sums_ = DeviceBuffer(meter.memory(), linear_workspace_bytes(meter.device().multiprocessors),
                         "workspace");
  }

  // Bytes that one run must at least move.
  double bytes(int n) const {
    return static_cast<double>(layout_.bytes) + 2.0 * n * layout_.in + 4.0 * n * layout_.out;
  }
  double operations(int n) const { return 2.0 * n * layout_.in * layout_.out; }
  int copies() const { return copies_; }

  double time(int n) {
    SLICELLM_CUDA_CHECK(cudaMemsetAsync(out_.get(), 0xff, out_.bytes(), meter_.stream()));  // NaN
    const double expected = meter_.roofline(bytes(n), operations(n)) + 2e-6;
    return meter_.time(Meter::launches_for(expected, kSeconds, copies_), kRepeats,
                       [&](int i) { run(n, i % copies_); });
  }

  // Relative error of what the timed runs left, over some rows and all tokens; infinite where an
  // output was not written, and where the first token differs from that of the first call by a bit.
  double error(int n) {
    std::vector<float> y(static_cast<size_t>(n) * layout_.out);
    SLICELLM_CUDA_CHECK(cudaMemcpy(y.data(), out_.get(), y.size() * 4, cudaMemcpyDeviceToHost));
    if (first_token_.empty()) first_token_.assign(y.begin(), y.begin() + layout_.out);
    const bool written = std::all_of(y.begin(), y.end(), [](float v) { return std::isfinite(v); });
    if (!written || std::memcmp(y.data(), first_token_.data(), first_token_.size() * 4) != 0) {
      return std::numeric_limits<double>::infinity();
    }
    double error = 0, norm = 0;
    std::vector<float> w(static_cast<size_t>(layout_.in));
    for (int i = 0; i < kCheckedRows; ++i) {
      const int64_t row = (layout_.out - 1) * int64_t{i} / (kCheckedRows - 1);
      decode(weight_, row * layout_.in, layout_.in, w.data());
      for (int token = 0; token < n; ++token) {
        double sum = 0;
        for (int k = 0; k < layout_.in; ++k) {
          sum += static_cast<double>(w[k]) * input_[static_cast<size_t>(token) * layout_.in + k];
        }
        const double off = y[static_cast<size_t>(token) * layout_.out + row] - sum;
        error += off * off;
        norm += sum * sum;
      }
    }
    return std::sqrt(error / norm);
  }

 private:
  void fill_input(int tokens, uint64_t seed) {
    input_ = random_values(static_cast<size_t>(tokens) * layout_.in, seed);
    std::vector<uint16_t> rows(static_cast<size_t>(tokens) * layout_.input_width());
    const bool bfloat16 = layout_.kind == WeightKind::bfloat16;
    for (int token = 0; token < tokens; ++token) {
      for (int k = 0; k < layout_.in; ++k) {
        float& v = input_[static_cast<size_t>(token) * layout_.in + k];
        const uint16_t bits = bfloat16 ? float_to_bfloat16(v) : float_to_half(v);
        v = bfloat16 ? bfloat16_to_float(bits) : half_to_float(bits);
        rows[static_cast<size_t>(token) * layout_.input_width() + k] = bits;
      }
    }
    device_input_ = DeviceBuffer(meter_.memory(), rows.size() * 2, "input");
    meter_.stream().copy(device_input_.get(), rows.data(), rows.size() * 2, cudaMemcpyHostToDevice);
    meter_.stream().synchronize();
  }

  void run(int n, int copy) {
    LinearCall call;
    call.layout = &layout_;
    call.data = weights_.get() + copy * stride_;
    call.input = device_input_.get();
    call.n = n;
    call.out = out_.get<float>();
    const DeviceInfo& device = meter_.device();
    run_linear(meter_.stream(),
               {sums_.get<float>(), device.multiprocessors, device.shared_per_block}, call);
  }

  const Meter& meter_;
  const Weight& weight_;
  LinearLayout layout_;
  size_t stride_ = 0;
  int copies_ = 0;
  DeviceBuffer weights_{meter_.memory()}, device_input_{meter_.memory()};
  DeviceBuffer out_{meter_.memory()}, sums_{meter_.memory()};
  std::vector<float> input_;  // as rounded
  std::vector<float> first_token_;
};

// Returns whether all results were right.
bool run_case(const Meter& meter, Shape shape, const std::string& dtype, const Weight& full,
              const std::vector<int>& batches, bool first) {
  const int threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  const Weight weight = convert(full, parse_dtype(dtype), threads);
  Case layer(meter, weight, *std::max_element(batches.begin(), batches.end()), 7);
  bool right = true;
  for (const int n : batches) {
    const double seconds = layer.time(n);
    const double error = layer.error(n);
    const bool ok = error <= kTolerance;
    const double roofline = meter.roofline(layer.bytes(n), layer.operations(n));
    right = right && ok;
    std::printf(
        "%s  {\"in\": %lld, \"out\": %lld, \"dtype\": \"%s\", \"batch\": %d, \"copies\": %d,\n"
        "   \"bytes\": %.0f, \"operations\": %.0f, \"seconds\": %.4g, \"roofline_seconds\": %.4g,\n"
        "   \"share_of_roofline\": %.4f, \"bytes_limit_seconds\": %.4g, \"right\": %s, \"error\": "
        "%.3g}",
        first ? "" : ",\n", static_cast<long long>(shape.in), static_cast<long long>(shape.out),
        dtype.c_str(), n, layer.copies(), layer.bytes(n), layer.operations(n), seconds, roofline,
        roofline / seconds, layer.bytes(n) / (0.85 * meter.copy_rate()) + 3e-6,
        ok ? "true" : "false", std::isfinite(error) ? error : -1);
    std::fprintf(stderr, "%6lld x %-6lld %-9s batch %-5d %9.1f us  %5.1f %% of roofline%s\n",
                 static_cast<long long>(shape.in), static_cast<long long>(shape.out), dtype.c_str(),
                 n, seconds * 1e6, 100 * roofline / seconds, ok ? "" : "  WRONG");
    first = false;
  }
  return right;
}

int run_all(const Options& options) {
  const Meter meter;
  std::printf(
      "{\"device\": \"%s\", \"copy_bytes_per_second\": %.4g, \"matrix_operations_per_second\": "
      "%.4g,\n \"l2_bytes\": %zu, \"results\": [\n",
      meter.device().name.c_str(), meter.copy_rate(), meter.matrix_rate(), meter.device().l2_bytes);
  bool right = true, first = true;
  for (const Shape& shape : options.shapes) {
    std::vector<float> values =
        random_values(static_cast<size_t>(shape.in) * shape.out, std::random_device()());
    for (float& v : values) v *= 0.02f;
    Weight full;
    full.name = "weight";
    full.shape = {shape.out, shape.in};
    full.data = values.data();
    full.data_bytes = values.size() * sizeof(float);
    for (const std::string& dtype : options.dtypes) {
      right = run_case(meter, shape, dtype, full, options.batches, first) && right;
      first = false;
    }
  }
  std::printf("\n]}\n");
  return right ? 0 : 1;
}

}  // namespace
}  // namespace slicellm::cuda

int main(int argc, char** argv) {
  try {
    return slicellm::cuda::run_all(slicellm::cuda::parse(argc, argv));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "cuda_linear_benchmark: %s\n", error.what());
    return 1;
  }
}
