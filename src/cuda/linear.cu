#include <string>

#include "cuda/linear.h"
#include "cuda/linear_narrow.h"
#include "cuda/linear_wide.h"
#include "cuda/runtime.h"
#include "slicellm/error.h"

namespace slicellm::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMostWideTokens = 192;  // of a block
constexpr int kLargeSharedKib = 160;  // A100, Orin, H100 and larger

constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Slices are spread over blocks where fewer than three quarters of the multiprocessors would have a
// block.
bool is_spread(const LinearArguments& args, int blocks, int multiprocessors) {
  return args.slices > 1 && 4 * blocks < 3 * multiprocessors;
}

// Adds the slices' sums up, as the other kernels do, and stores the results.
__global__ void add_slices(LinearArguments args) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int row = i % 8, tile = i / 8 % args.tiles;
  const auto token = static_cast<int>(i / 8 / args.tiles);
  if (token >= args.n) return;
  float total[2] = {};
  for (int slice = 0; slice < args.slices; ++slice) {
    const float* from = sums_of(args, slice, token, tile, row);
    total[0] += from[0];
    total[1] += from[8];
  }
  store_products(args, token, tile, row, total[0], total[1]);
}

// Blocks may use more than 48 KiB only of kernels for which this was asked.
template <class Kernel>
void allow_shared(Kernel kernel, int bytes) {
  if (bytes <= 48 * 1024) return;
  SLICELLM_CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
}

template <class Weights, int kTokenTiles>
void run_narrow(cudaStream_t stream, const LinearArguments& args) {
  using Shape = NarrowShape<Weights, kTokenTiles>;
  allow_shared(narrow_linear<Weights, kTokenTiles>, Shape::kSharedBytes);
  const int blocks = ceil_div(args.tiles, kNarrowWarps / args.slices);
  SLICELLM_LAUNCH((narrow_linear<Weights, kTokenTiles>), dim3(blocks), dim3(kNarrowWarps * 32),
                  Shape::kSharedBytes, stream, args);
  SLICELLM_CUDA_CHECK(cudaGetLastError());
}

template <class Weights, int kBlockTokens, int kSharedKib = kLeastSharedKib>
void run_wide(cudaStream_t stream, const LinearArguments& args, int multiprocessors) {
  using Shape = WideShape<Weights, kBlockTokens, kSharedKib>;
  static_assert(kBlockTokens <= kMostWideTokens);
  constexpr auto kKernel = wide_linear<Weights, kBlockTokens, kSharedKib>;
  dim3 grid(ceil_div(args.n, kBlockTokens), ceil_div(args.tiles, kWideTiles));
  const bool spread = is_spread(args, static_cast<int>(grid.x * grid.y), multiprocessors);
  if (spread) grid.z = args.slices;
  allow_shared(kKernel, Shape::kSharedBytes);
  SLICELLM_LAUNCH(kKernel, grid, dim3(kWideWarps * 32), Shape::kSharedBytes, stream, args);
  SLICELLM_CUDA_CHECK(cudaGetLastError());
  if (!spread) return;
  const int blocks = ceil_div(args.n * args.tiles * 8, kThreads);
  SLICELLM_LAUNCH(add_slices, dim3(blocks), dim3(kThreads), 0, stream, args);
  SLICELLM_CUDA_CHECK(cudaGetLastError());
}

// Blocks of 192 tokens read a fifth less from L2 and from shared memory for each product than
// blocks of 128, which a large GPU's matrix units need for weights of 16 bits; unless the last
// block would be too empty.
bool suits_192(int n) { return 15 * ceil_div(n, 192) <= 12 * ceil_div(n, 128); }

template <class Weights>
void run(cudaStream_t stream, const LinearArguments& args, const LinearWorkspace& workspace) {
  const int multiprocessors = workspace.multiprocessors;
  if (args.n <= 8) return run_narrow<Weights, 1>(stream, args);
  if (args.n <= 16) return run_narrow<Weights, 2>(stream, args);
  if (args.n <= 32) return run_wide<Weights, 32>(stream, args, multiprocessors);
  if (args.n <= 64) return run_wide<Weights, 64>(stream, args, multiprocessors);
  if constexpr (!Weights::kScaled) {
    if (suits_192(args.n)) {
      if (workspace.shared_per_block >= kLargeSharedKib * 1024) {
        return run_wide<Weights, 192, kLargeSharedKib>(stream, args, multiprocessors);
      }
      return run_wide<Weights, 192>(stream, args, multiprocessors);
    }
  }
  run_wide<Weights, 128>(stream, args, multiprocessors);
}

}  // namespace

size_t linear_workspace_bytes(int multiprocessors) {
  const size_t block_floats = size_t{kWideRows} * kMostWideTokens;
  return static_cast<size_t>(multiprocessors) * 3 / 4 * block_floats * kMaxSlices * sizeof(float);
}

void run_linear(cudaStream_t stream, const LinearWorkspace& workspace, const LinearCall& call) {
  const LinearLayout& layout = *call.layout;
  if (layout.gated != (call.epilogue == Epilogue::silu_gate)) {
    throw Error(ErrorKind::invalid_argument, "epilogue", layout.gated ? "a gated layer" : "silu",
                "silu for gated layers and nothing else");
  }
  if (call.n == 0) return;
  const auto* data = static_cast<const std::byte*>(call.data);
  LinearArguments args{};
  args.weights = reinterpret_cast<const uint4*>(data);
  if (layout.groups > 0) args.scales = reinterpret_cast<const uint2*>(data + layout.scales_at);
  if (layout.offsets) args.offsets = reinterpret_cast<const uint2*>(data + layout.offsets_at);
  if (layout.bias) args.bias = reinterpret_cast<const float*>(data + layout.bias_at);
  args.input = call.input;
  args.out = call.out;
  args.sums = workspace.sums;
  args.n = call.n;
  args.width = layout.input_width();
  args.outputs = layout.outputs();
  args.tiles = layout.tiles;
  args.units = layout.units;
  args.slices = layout.slices;
  args.slice_units = layout.slice_units;
  args.groups = layout.groups;
  args.group_shift = layout.group_shift;
  args.gated = layout.gated;
  args.epilogue = call.epilogue;
  args.alpha = call.alpha;
  switch (layout.kind) {
    case WeightKind::int4:
      return run<Int4Weights>(stream, args, workspace);
    case WeightKind::int8:
      return run<Int8Weights>(stream, args, workspace);
    case WeightKind::float16:
      return run<Float16Weights>(stream, args, workspace);
    case WeightKind::bfloat16:
      return run<Bfloat16Weights>(stream, args, workspace);
  }
}

}  // namespace slicellm::cuda
