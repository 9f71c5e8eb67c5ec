// Times the matrix products of one model shape for each weight type and batch, beside what memory
// and arithmetic units allow, measured in the same run (benchmark/roofline). Every product is
// checked against a naive double loop.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "benchmark/roofline/arguments.h"
#include "benchmark/roofline/limits.h"
#include "benchmark/roofline/work.h"
#include "cpu/thread_pool.h"
#include "slicellm/dtype.h"
#include "slicellm/error.h"
#include "slicellm/ops.h"

namespace slicellm {
namespace {

using roofline::LinearShape;
using roofline::MachineLimits;
using roofline::number;
using roofline::OpWork;

struct Options {
  std::vector<std::string> dtypes = {"int4g32", "int4", "int8", "float16", "bfloat16", "float32"};
  std::vector<int64_t> batches = {1, 4, 8, 16, 32, 128, 512};
  std::string shape = "qwen2.5-0.5b";
  std::string isa;
  std::string activation = "auto";
  int threads = 0;
  int layers = 0;  // 0: all of the shape
  int repeats = 5;
};

constexpr const char* kHelp =
    "kernel_benchmark [--shape qwen2.5-0.5b|tinyllama-1.1b] [--dtypes int4g32,int8,...]\n"
    "                 [--batches 1,8,...]\n"
    "                 [--isa portable|avx2|avx512|neon|dotprod|i8mm]\n"
    "                 [--activation auto|float32|int8] [--threads N] [--layers N] [--repeats N]\n";

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double median(std::vector<double> v) {
  std::nth_element(v.begin(), v.begin() + v.size() / 2, v.end());
  return v[v.size() / 2];
}

Weight random_weight(const DTypeSpec& spec, const LinearShape& shape) {
  std::mt19937 random(static_cast<unsigned>(shape.out + shape.in));
  const int64_t count = shape.out * shape.in;
  auto data = std::make_shared<std::vector<uint8_t>>(count * dtype_bits(spec.type) / 8);
  Weight w{.name = shape.name,
           .dtype = spec.type,
           .shape = {shape.out, shape.in},
           .data = data->data(),
           .data_bytes = data->size(),
           .scale = {},
           .minimum = {},
           .owner = data};
  if (is_quantized(spec.type)) {
    for (uint8_t& byte : *data) byte = static_cast<uint8_t>(random());
    w.group_size = spec.group_size == 0 ? shape.in : spec.group_size;
    const bool int4 = spec.type == DType::int4;
    for (int64_t i = 0; i < shape.out * w.groups(); ++i) {
      const float scale = half_to_float(
          float_to_half((1 + static_cast<float>(random() % 64) / 64) * (int4 ? 0.004f : 0.00025f)));
      w.scale.push_back(scale);
      w.minimum.push_back(-scale *
                          static_cast<float>(int4 ? 6 + random() % 4 : 120 + random() % 16));
    }
    return w;
  }
  for (int64_t i = 0; i < count; ++i) {
    const float v = (static_cast<float>(random() % 65536) / 65536 - 0.5f) * 0.06f;
    const uint16_t bits = spec.type == DType::float16 ? float_to_half(v) : float_to_bfloat16(v);
    if (spec.type == DType::float32) {
      std::memcpy(data->data() + i * 4, &v, 4);
    } else {
      std::memcpy(data->data() + i * 2, &bits, 2);
    }
  }
  return w;
}

// One linear shape with a copy per layer, so that weights come from memory as in a model.
class ShapeBench {
 public:
  ShapeBench(Device& device, const LinearShape& shape, const DTypeSpec& spec,
             ActivationType activation, int64_t copies, int64_t max_batch)
      : device_(device), shape_(shape), weight_(random_weight(spec, shape)) {
    for (int64_t i = 0; i < copies; ++i) {
      linears_.push_back(device.pack({&weight_, 1}, {}, activation, shape.gated));
    }
    norm_.weight.assign(shape.in, 1.0f);
    packed_norm_ = device.pack_norm(norm_);
    x_ = device.allocate(max_batch * shape.in);
    out_ = device.allocate(max_batch * shape.out);
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < max_batch * shape.in; ++i) x_->data()[i] = normal(random);
  }

  size_t copies() const { return linears_.size(); }

  // Runs one copy for n tokens; returns the seconds it took.
  double run(size_t copy, int64_t n) {
    const PackedLinear& linear = *linears_[copy];
    const double start = now();
    if (shape_.gated) {
      device_.norm_linear_act(*x_, n, *packed_norm_, linear, GateActivation::silu_gate, false,
                              *out_);
    } else if (shape_.normed) {
      device_.norm_linear(*x_, n, *packed_norm_, linear, false, *out_);
    } else {
      device_.linear_add(*x_, n, linear, 0, *out_);
    }
    return now() - start;
  }

  // Relative error of some results of the last run against float64 with the same decoded weights.
  double error(int64_t n) const {
    const int64_t width = shape_.gated ? shape_.out / 2 : shape_.out;
    double difference = 0, size = 0;
    std::vector<float> row(shape_.in);
    for (int64_t t = 0; t < n; t += std::max<int64_t>(1, n - 1)) {
      const float* x = x_->data() + t * shape_.in;
      double square = 0;
      for (int64_t k = 0; k < shape_.in; ++k) square += double{x[k]} * x[k];
      const double scale =
          shape_.normed ? 1 / std::sqrt(square / static_cast<double>(shape_.in) + norm_.eps) : 1;
      const auto product = [&](int64_t r) {
        decode(weight_, r * shape_.in, shape_.in, row.data());
        double sum = 0;
        for (int64_t k = 0; k < shape_.in; ++k) sum += double{row[k]} * x[k] * scale;
        return sum;
      };
      for (int64_t r = 0; r < width; r += 1 + width / 40) {
        double y = product(r);
        if (shape_.gated) y = y / (1 + std::exp(-y)) * product(r + width);
        const double got = out_->data()[t * width + r];
        difference += (got - y) * (got - y);
        size += y * y;
      }
    }
    return std::sqrt(difference / size);
  }

 private:
  Device& device_;
  LinearShape shape_;
  Weight weight_;
  std::vector<std::unique_ptr<PackedLinear>> linears_;
  NormWeights norm_;
  std::unique_ptr<PackedNorm> packed_norm_;
  std::unique_ptr<Activation> x_, out_;
};

void print_row(const char* name, int64_t n, double seconds, double bytes, double operations,
               double bound) {
  std::printf("%-14s %6ld %10.1f %8.1f %7.0f %8.0f%%", name, static_cast<long>(n), seconds * 1e6,
              bytes / seconds * 1e-9, operations / seconds * 1e-9, 100 * bound / seconds);
}

// Returns false when a product is wrong.
bool bench_dtype(const Options& options, const std::string& dtype, const MachineLimits& limits) {
  const DTypeSpec spec = parse_dtype(dtype);
  const ActivationType activation = parse_activation_type(options.activation);
  const auto device = make_cpu_device({.threads = options.threads, .isa = options.isa});
  const int64_t max_batch = *std::max_element(options.batches.begin(), options.batches.end());
  const bool exact = !is_quantized(spec.type) || activation == ActivationType::float32;
  const double most_error = exact ? 1e-5 : 0.02;
  bool right = true;
  const std::vector<LinearShape> shapes =
      roofline::linear_shapes(roofline::model_shape(options.shape));
  std::vector<std::unique_ptr<ShapeBench>> benches;
  for (const LinearShape& shape : shapes) {
    const int64_t copies =
        options.layers > 0 ? std::min<int64_t>(options.layers, shape.copies) : shape.copies;
    benches.push_back(
        std::make_unique<ShapeBench>(*device, shape, spec, activation, copies, max_batch));
  }
  std::printf("\n%-14s %6s %10s %8s %7s %9s %9s\n", dtype.c_str(), "batch", "us", "GB/s", "GOP/s",
              "of bound", "error");
  for (int64_t n : options.batches) {
    // Each pass goes through the layers in order, as a model does.
    std::vector<std::vector<double>> times(benches.size() + 1);
    for (int repeat = 0; repeat <= options.repeats; ++repeat) {
      std::vector<double> pass(benches.size() + 1, 0.0);
      for (size_t layer = 0; layer < benches[0]->copies(); ++layer) {
        for (size_t s = 0; s < benches.size(); ++s) {
          if (layer < benches[s]->copies()) pass[s] += benches[s]->run(layer, n);
        }
      }
      for (size_t s = 0; s < benches.size(); ++s) pass.back() += pass[s];
      if (repeat == 0) continue;  // warm-up
      for (size_t s = 0; s < pass.size(); ++s) times[s].push_back(pass[s]);
    }
    double all_bytes = 0, all_operations = 0, all_bounds = 0;
    for (size_t s = 0; s < benches.size(); ++s) {
      const auto copies = static_cast<double>(benches[s]->copies());
      OpWork work = roofline::linear_work(shapes[s], spec, n);
      if (exact) work.float_operations += std::exchange(work.int8_operations, 0.0);
      const double operations = work.int8_operations + work.float_operations;
      const double bound = work.bound(limits);
      const double error = benches[s]->error(n);
      right &= error < most_error;
      print_row(shapes[s].name, n, median(times[s]) / copies, work.bytes, operations, bound);
      std::printf(" %9.1e%s\n", error, error < most_error ? "" : "  WRONG");
      all_bytes += work.bytes * copies;
      all_operations += operations * copies;
      all_bounds += bound * copies;
    }
    print_row("whole step", n, median(times.back()), all_bytes, all_operations, all_bounds);
    std::puts("");
    std::fflush(stdout);
  }
  return right;
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; i += 2) {
    const std::string flag = argv[i];
    if (i + 1 == argc) throw Error(ErrorKind::invalid_argument, flag, "nothing", "a value");
    const std::string value = argv[i + 1];
    if (flag == "--shape") {
      options.shape = value;
    } else if (flag == "--dtypes") {
      options.dtypes = roofline::split(value);
    } else if (flag == "--batches") {
      options.batches = roofline::numbers(flag, value);
    } else if (flag == "--isa") {
      options.isa = value;
    } else if (flag == "--activation") {
      options.activation = value;
    } else if (flag == "--threads") {
      options.threads = static_cast<int>(number(flag, value));
    } else if (flag == "--layers") {
      options.layers = static_cast<int>(number(flag, value));
    } else if (flag == "--repeats") {
      options.repeats = static_cast<int>(number(flag, value));
    } else {
      throw Error(ErrorKind::invalid_argument, "flag", flag, "one of those that --help lists");
    }
  }
  return options;
}

int run(int argc, char** argv) {
  if (argc == 2 && (std::strcmp(argv[1], "-h") == 0 || std::strcmp(argv[1], "--help") == 0)) {
    std::fputs(kHelp, stdout);
    return 0;
  }
  const Options options = parse(argc, argv);
  const auto device = make_cpu_device({.threads = options.threads, .isa = options.isa});
  cpu::ThreadPool pool(device->threads());
  const MachineLimits limits = roofline::measure_limits(pool, cpu::choose_isa(options.isa));
  std::printf("%s; reads %.1f GB/s, int8 %.0f GOP/s, float32 %.0f GFLOP/s; medians of %d runs\n",
              device->describe().c_str(), limits.read_bytes * 1e-9, limits.int8_operations * 1e-9,
              limits.float_operations * 1e-9, options.repeats);
  bool right = true;
  for (const std::string& dtype : options.dtypes) right &= bench_dtype(options, dtype, limits);
  return right ? 0 : 1;
}

}  // namespace
}  // namespace slicellm

int main(int argc, char** argv) {
  try {
    return slicellm::run(argc, argv);
  } catch (const slicellm::Error& e) {
    std::fprintf(stderr, "kernel_benchmark: %s\n", e.what());
    return 2;
  }
}
