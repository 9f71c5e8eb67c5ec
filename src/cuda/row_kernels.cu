#include "cuda/row_kernels.h"

#include <algorithm>

#include "cuda/kernel.h"
#include "cuda/runtime.h"

namespace slicellm::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 512;

// A function of the width alone, as the order of sums follows from it.
int threads_for(int64_t width) {
  const int64_t threads = (width / 8 + kWarp - 1) / kWarp * kWarp;
  return static_cast<int>(std::clamp<int64_t>(threads, kWarp, kMaxThreads));
}

__device__ inline void store_16(__half* to, float x) {
  constexpr float kLargest = 65504.0f;
  *to = __float2half_rn(isfinite(x) ? fminf(fmaxf(x, -kLargest), kLargest) : x);
}
__device__ inline void store_16(__nv_bfloat16* to, float x) { *to = __float2bfloat16_rn(x); }

// Sum over the block's threads, the same bits in all of them.
__device__ inline float block_sum(float x) {
  SLICELLM_SHARED(float, partial, kMaxThreads / kWarp);
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    x += __shfl_xor_sync(0xffffffffu, x, offset);
  }
  __syncthreads();  // a previous sum has been read
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = x;
  __syncthreads();
  x = 0;
  for (int warp = 0; warp < static_cast<int>(blockDim.x) / kWarp; ++warp) x += partial[warp];
  return x;
}

// kVector values at a time.
template <class T, int kVector>
struct alignas(kVector * sizeof(T)) Pack {
  T v[kVector];
};

template <class Element>
struct Output {
  Element* out;
  int64_t stride;
};

// One block a row.
template <class Element, int kVector>
__global__ void __launch_bounds__(kMaxThreads)
    norm_kernel(RowInput input, DeviceNorm norm, float* normed, Output<Element> output) {
  using Floats = Pack<float, kVector>;
  using Elements = Pack<Element, kVector>;
  const int64_t row = input.rows != nullptr ? input.rows[blockIdx.x] : blockIdx.x;
  const int count = static_cast<int>(input.width) / kVector;
  const auto* x = reinterpret_cast<const Floats*>(input.x + row * input.width);
  const auto each = [&](auto function) {
    for (int i = threadIdx.x; i < count; i += blockDim.x) function(i, x[i]);
  };
  const float width = static_cast<float>(input.width);

  float mean = 0;
  if (norm.kind == NormKind::layer) {
    float sum = 0;
    each([&](int, const Floats& f) {
      for (int k = 0; k < kVector; ++k) sum += f.v[k];
    });
    mean = block_sum(sum) / width;
  }
  float squares = 0;
  each([&](int, const Floats& f) {
    for (int k = 0; k < kVector; ++k) squares += (f.v[k] - mean) * (f.v[k] - mean);
  });
  const float factor = 1.0f / sqrtf(block_sum(squares) / width + norm.eps);

  const auto* weight = reinterpret_cast<const Floats*>(norm.weight);
  const auto* bias = reinterpret_cast<const Floats*>(norm.bias);
  auto* normed_row = reinterpret_cast<Floats*>(normed + blockIdx.x * input.width);
  Element* out = output.out + blockIdx.x * output.stride;
  each([&](int i, Floats f) {
    const Floats w = weight[i];
    Elements e;
    for (int k = 0; k < kVector; ++k) f.v[k] = (f.v[k] - mean) * factor * w.v[k];
    if (norm.kind == NormKind::layer) {
      const Floats b = bias[i];
      for (int k = 0; k < kVector; ++k) f.v[k] += b.v[k];
    }
    for (int k = 0; k < kVector; ++k) store_16(&e.v[k], f.v[k]);
    if (normed != nullptr) normed_row[i] = f;
    reinterpret_cast<Elements*>(out)[i] = e;
  });
  for (int64_t i = input.width + threadIdx.x; i < output.stride; i += blockDim.x) {
    store_16(out + i, 0.0f);
  }
}

template <class Element>
__global__ void convert_kernel(RowInput input, Output<Element> output) {
  const int64_t row = input.rows != nullptr ? input.rows[blockIdx.y] : blockIdx.y;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= output.stride) return;
  const float x = i < input.width ? input.x[row * input.width + i] : 0.0f;
  store_16(output.out + blockIdx.y * output.stride + i, x);
}

__device__ inline float decode(const DeviceTable& table, int64_t row, int64_t col) {
  const int64_t i = row * table.cols + col;
  switch (table.dtype) {
    case DType::float32:
      return static_cast<const float*>(table.data)[i];
    case DType::float16:
      return __half2float(static_cast<const __half*>(table.data)[i]);
    case DType::bfloat16:
      return __bfloat162float(static_cast<const __nv_bfloat16*>(table.data)[i]);
    default:
      break;
  }
  const auto* bytes = static_cast<const uint8_t*>(table.data);
  const int code = table.dtype == DType::int8 ? bytes[i]
                   : i % 2 == 0               ? bytes[i / 2] >> 4
                                              : bytes[i / 2] & 15;
  const int64_t group = row * table.groups + col / table.group_size;
  return __fadd_rn(table.minimum[group], __fmul_rn(table.scale[group], static_cast<float>(code)));
}

__global__ void embed_kernel(DeviceTable table, const int32_t* ids, const int32_t* drawn,
                             float* x) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= table.cols) return;
  int32_t id = ids[blockIdx.y];
  if (id < 0) id = max(drawn[-1 - id], 0);
  x[blockIdx.y * table.cols + i] = decode(table, id, i);
}

constexpr int kThreads = 256;
constexpr int64_t kMaxRows = 65535;  // of a grid's y dimension

dim3 grid_of(int64_t width, int64_t rows) {
  return dim3(static_cast<unsigned>((width + kThreads - 1) / kThreads),
              static_cast<unsigned>(rows));
}

template <class Element>
void launch_norm(cudaStream_t stream, const RowInput& input, const DeviceNorm& norm, float* normed,
                 const RowOutput& output) {
  const auto n = static_cast<unsigned>(input.n);
  const int threads = threads_for(input.width);
  const Output<Element> to{static_cast<Element*>(output.out), output.stride};
  if (input.width % 4 == 0) {
    SLICELLM_LAUNCH((norm_kernel<Element, 4>), n, threads, 0, stream, input, norm, normed, to);
  } else {
    SLICELLM_LAUNCH((norm_kernel<Element, 1>), n, threads, 0, stream, input, norm, normed, to);
  }
}

template <class Element>
void launch_convert(cudaStream_t stream, const RowInput& input, const RowOutput& output) {
  for (int64_t first = 0; first < input.n; first += kMaxRows) {
    RowInput part = input;
    part.n = std::min(kMaxRows, input.n - first);
    if (input.rows != nullptr) {
      part.rows += first;
    } else {
      part.x += first * input.width;
    }
    const Output<Element> to{static_cast<Element*>(output.out) + first * output.stride,
                             output.stride};
    SLICELLM_LAUNCH(convert_kernel<Element>, grid_of(output.stride, part.n), kThreads, 0, stream,
                    part, to);
  }
}

}  // namespace

void norm_rows(cudaStream_t stream, const RowInput& input, const DeviceNorm& norm, float* normed,
               const RowOutput& output) {
  if (input.n == 0) return;
  if (output.type == InputType::float16) {
    launch_norm<__half>(stream, input, norm, normed, output);
  } else {
    launch_norm<__nv_bfloat16>(stream, input, norm, normed, output);
  }
  SLICELLM_CUDA_CHECK(cudaGetLastError());
}

void convert_rows(cudaStream_t stream, const RowInput& input, const RowOutput& output) {
  if (output.type == InputType::float16) {
    launch_convert<__half>(stream, input, output);
  } else {
    launch_convert<__nv_bfloat16>(stream, input, output);
  }
  SLICELLM_CUDA_CHECK(cudaGetLastError());
}

void embed_rows(cudaStream_t stream, const DeviceTable& table, const int32_t* ids,
                const int32_t* drawn, int64_t n, float* x) {
  for (int64_t first = 0; first < n; first += kMaxRows) {
    SLICELLM_LAUNCH(embed_kernel, grid_of(table.cols, std::min(kMaxRows, n - first)), kThreads, 0,
                    stream, table, ids + first, drawn, x + first * table.cols);
  }
  SLICELLM_CUDA_CHECK(cudaGetLastError());
}

}  // namespace slicellm::cuda
