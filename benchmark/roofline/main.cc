// What this machine can do at most, and what one step of a model has to do: memory read, exact int8
// and float32 multiply-adds per number of threads, then bytes, operations and the least time of
// each op for each weight type and batch. JSON on the standard output.
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "benchmark/roofline/arguments.h"
#include "benchmark/roofline/limits.h"
#include "benchmark/roofline/work.h"
#include "slicellm/error.h"

namespace slicellm::roofline {
namespace {

constexpr const char* kHelp =
    "roofline [--threads 1,2,...] [--isa portable|avx2|avx512] [--shape qwen2.5-0.5b,...]\n"
    "         [--dtypes int4g32,int8,...] [--batches 1,8,...] [--context N] [--prefill N]\n"
    "The bounds are those of the last number of threads.\n";

struct Options {
  std::vector<int64_t> threads;
  std::string isa;
  std::vector<std::string> shapes = {"qwen2.5-0.5b", "tinyllama-1.1b"};
  std::vector<std::string> dtypes = {"int4g32", "int8", "float16"};
  std::vector<int64_t> batches = {1, 2, 4, 8, 16, 32, 64};
  int64_t context = 64;
  int64_t prefill = 512;
};

Options parse(int argc, char** argv) {
  Options options;
  for (int64_t t = 1; t <= cpu::usable_cores(); ++t) options.threads.push_back(t);
  for (int i = 1; i < argc; i += 2) {
    const std::string flag = argv[i];
    if (i + 1 == argc) throw Error(ErrorKind::invalid_argument, flag, "nothing", "a value");
    const std::string value = argv[i + 1];
    if (flag == "--threads") {
      options.threads = numbers(flag, value);
    } else if (flag == "--isa") {
      options.isa = value;
    } else if (flag == "--shape") {
      options.shapes = split(value);
    } else if (flag == "--dtypes") {
      options.dtypes = split(value);
    } else if (flag == "--batches") {
      options.batches = numbers(flag, value);
    } else if (flag == "--context") {
      options.context = number(flag, value);
    } else if (flag == "--prefill") {
      options.prefill = number(flag, value);
    } else {
      throw Error(ErrorKind::invalid_argument, "flag", flag, "one of those that --help lists");
    }
  }
  return options;
}

void print_step(const ModelShape& shape, const std::string& dtype, const char* kind,
                const StepSize& size, const MachineLimits& limits, const char* separator) {
  const std::vector<OpWork> ops = step_work(shape, parse_dtype(dtype), size);
  double bytes = 0, int8_operations = 0, float_operations = 0, seconds = 0;
  for (const OpWork& op : ops) {
    const auto copies = static_cast<double>(op.copies);
    bytes += copies * op.bytes;
    int8_operations += copies * op.int8_operations;
    float_operations += copies * op.float_operations;
    seconds += copies * op.bound(limits);
  }
  std::printf("%s\n  {\"shape\": \"%s\", \"dtype\": \"%s\", \"step\": \"%s\", \"tokens\": %ld, ",
              separator, shape.name, dtype.c_str(), kind,
              static_cast<long>(size.sequences * size.tokens));
  std::printf(
      "\"bytes\": %.0f, \"int8_operations\": %.0f, \"float_operations\": %.0f, "
      "\"bound_ms\": %.4f,\n   \"ops\": [",
      bytes, int8_operations, float_operations, seconds * 1e3);
  for (const OpWork& op : ops) {
    std::printf(
        "%s\n    {\"op\": \"%s\", \"copies\": %ld, \"bytes\": %.0f, "
        "\"int8_operations\": %.0f, \"float_operations\": %.0f, \"bound_us\": %.2f}",
        &op == &ops[0] ? "" : ",", op.name, static_cast<long>(op.copies), op.bytes,
        op.int8_operations, op.float_operations, op.bound(limits) * 1e6);
  }
  std::printf("]}");
}

int run(int argc, char** argv) {
  if (argc == 2 && (std::strcmp(argv[1], "-h") == 0 || std::strcmp(argv[1], "--help") == 0)) {
    std::fputs(kHelp, stdout);
    return 0;
  }
  const Options options = parse(argc, argv);
  const cpu::Isa isa = cpu::choose_isa(options.isa);
  std::printf("{\"cpu\": \"%s\", \"isa\": \"%s\",\n \"limits\": [", cpu::cpu_model_name().c_str(),
              cpu::to_string(isa));
  MachineLimits limits{};
  const char* separator = "";
  for (int64_t threads : options.threads) {
    cpu::ThreadPool pool(static_cast<int>(threads));
    limits = measure_limits(pool, isa);
    std::printf(
        "%s\n  {\"threads\": %ld, \"read_gb_per_s\": %.2f, \"int8_gop_per_s\": %.1f, "
        "\"float_gop_per_s\": %.1f}",
        separator, static_cast<long>(threads), limits.read_bytes * 1e-9,
        limits.int8_operations * 1e-9, limits.float_operations * 1e-9);
    separator = ",";
  }
  std::printf("],\n \"context\": %ld,\n \"steps\": [", static_cast<long>(options.context));
  separator = "";
  for (const std::string& name : options.shapes) {
    const ModelShape& shape = model_shape(name);
    for (const std::string& dtype : options.dtypes) {
      for (int64_t batch : options.batches) {
        print_step(shape, dtype, "decode", {batch, 1, options.context}, limits, separator);
        separator = ",";
      }
      print_step(shape, dtype, "prefill", {1, options.prefill, 0}, limits, separator);
      separator = ",";
    }
  }
  std::printf("]}\n");
  return 0;
}

}  // namespace
}  // namespace slicellm::roofline

int main(int argc, char** argv) {
  try {
    return slicellm::roofline::run(argc, argv);
  } catch (const slicellm::Error& e) {
    std::fprintf(stderr, "roofline: %s\n", e.what());
    return 2;
  }
}
