// The wrappers of src/cuda/ptx.h in the emulator. Layouts are checked against the formulas of the
// PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type" and "ldmatrix", written
// here as there: per element i of a lane's fragment, not per register as the emulator does.
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "check.h"
#include "cuda/ptx.h"

namespace {

using namespace slicellm::cuda;
using slicellm::test::check_result;

template <class T>
T* upload(const std::vector<T>& values) {
  T* device = nullptr;
  cudaMalloc(&device, values.size() * sizeof(T));
  cudaMemcpy(device, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice);
  return device;
}
template <class T>
std::vector<T> fetch(T* device, size_t count) {
  std::vector<T> values(count);
  cudaMemcpy(values.data(), device, count * sizeof(T), cudaMemcpyDeviceToHost);
  cudaFree(device);
  return values;
}

// Fragments of all lanes, [lane][register], to D's.
template <class Element>
__global__ void multiply(const uint32_t* a, const uint32_t* b, float* d) {
  const unsigned lane = threadIdx.x % 32;
  uint32_t ra[4], rb[2];
  float rd[4];
  for (int i = 0; i < 4; ++i) ra[i] = a[4 * lane + i];
  for (int i = 0; i < 2; ++i) rb[i] = b[2 * lane + i];
  for (int i = 0; i < 4; ++i) rd[i] = d[4 * lane + i];
  mma_m16n8k16<Element>(rd, ra, rb);
  for (int i = 0; i < 4; ++i) d[4 * lane + i] = rd[i];
}

uint16_t bits_of(__half v) { return __half_as_ushort(v); }
uint16_t bits_of(__nv_bfloat16 v) { return __bfloat16_as_ushort(v); }

template <class Element>
void test_mma(unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  float a[16][16], b[16][8], c[16][8];
  const auto rounded = [&] { return static_cast<float>(Element(normal(random))); };
  for (auto& row : a) {
    for (float& v : row) v = rounded();
  }
  for (auto& row : b) {
    for (float& v : row) v = rounded();
  }
  for (auto& row : c) {
    for (float& v : row) v = normal(random);
  }
  std::vector<uint16_t> fa(32 * 8), fb(32 * 4);
  std::vector<float> fc(32 * 4);
  const auto row_of_a = [](int lane, int i) {
    const int group = lane >> 2;
    return (0 <= i && i < 2) || (4 <= i && i < 6) ? group : group + 8;
  };
  const auto col_of_a = [](int lane, int i) { return lane % 4 * 2 + (i & 1) + (i >= 4 ? 8 : 0); };
  const auto row_of_b = [](int lane, int i) { return lane % 4 * 2 + (i & 1) + (i >= 2 ? 8 : 0); };
  const auto row_of_c = [](int lane, int i) { return (lane >> 2) + (i < 2 ? 0 : 8); };
  const auto col_of_c = [](int lane, int i) { return lane % 4 * 2 + (i & 1); };
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 8; ++i) {
      fa[8 * lane + i] = bits_of(Element(a[row_of_a(lane, i)][col_of_a(lane, i)]));
    }
    for (int i = 0; i < 4; ++i) {
      fb[4 * lane + i] = bits_of(Element(b[row_of_b(lane, i)][lane >> 2]));
      fc[4 * lane + i] = c[row_of_c(lane, i)][col_of_c(lane, i)];
    }
  }
  std::vector<uint32_t> wa(32 * 4), wb(32 * 2);
  std::memcpy(wa.data(), fa.data(), wa.size() * 4);
  std::memcpy(wb.data(), fb.data(), wb.size() * 4);
  uint32_t *da = upload(wa), *db = upload(wb);
  float* dd = upload(fc);
  SLICELLM_LAUNCH(multiply<Element>, 1, 32, 0, nullptr, da, db, dd);
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
  const std::vector<float> got = fetch(dd, fc.size());
  cudaFree(da);
  cudaFree(db);
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = row_of_c(lane, i), col = col_of_c(lane, i);
      double expected = c[row][col], size = std::fabs(c[row][col]);
      for (int k = 0; k < 16; ++k) {
        expected += double{a[row][k]} * double{b[k][col]};
        size += std::fabs(double{a[row][k]} * double{b[k][col]});
      }
      CHECK(std::fabs(got[4 * lane + i] - expected) <= 16 * 0x1p-24 * size);
    }
  }
}

// Element (row, column) of matrix j holds 256 * j + 16 * row + column + 1.
__global__ void load(uint32_t* out) {
  SLICELLM_SHARED(uint16_t, matrices, 4 * 8 * 8);
  const unsigned lane = threadIdx.x;
  for (unsigned i = lane; i < 256; i += 32) {
    matrices[i] = static_cast<uint16_t>(256 * (i / 64) + 16 * (i / 8 % 8) + i % 8 + 1);
  }
  __syncwarp();
  uint32_t four[4], two[2];
  ldmatrix_x4(four, matrices + 8 * lane);
  for (int j = 0; j < 4; ++j) out[lane * 12 + j] = four[j];
  ldmatrix_x4_trans(four, matrices + 8 * lane);
  for (int j = 0; j < 4; ++j) out[lane * 12 + 4 + j] = four[j];
  // Addresses of the upper lanes are not used.
  ldmatrix_x2(two, lane < 16 ? matrices + 8 * lane : matrices);
  for (int j = 0; j < 2; ++j) out[lane * 12 + 8 + j] = two[j];
  ldmatrix_x2_trans(two, lane < 16 ? matrices + 8 * lane : matrices);
  for (int j = 0; j < 2; ++j) out[lane * 12 + 10 + j] = two[j];
}

void test_ldmatrix() {
  uint32_t* out = nullptr;
  cudaMalloc(&out, 32 * 12 * 4);
  SLICELLM_LAUNCH(load, 1, 32, 0, nullptr, out);
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
  const std::vector<uint32_t> got = fetch(out, 32 * 12);
  const auto value = [](int j, int row, int col) {
    return static_cast<uint32_t>(256 * j + 16 * row + col + 1);
  };
  for (int lane = 0; lane < 32; ++lane) {
    const int row = lane / 4, col = lane % 4 * 2;
    for (int i = 0; i < 12; ++i) {
      const int j = i < 8 ? i % 4 : i % 2;
      const bool transposed = (i >= 4 && i < 8) || i >= 10;
      const uint32_t low = transposed ? value(j, col, row) : value(j, row, col);
      const uint32_t high = transposed ? value(j, col + 1, row) : value(j, row, col + 1);
      CHECK(got[12 * lane + i] == (high << 16 | low));
    }
  }
}

// Reads what it copies before the wait, after a wait that does not cover it, and after the right
// one.
__global__ void copy_async(const float* from, float* out) {
  SLICELLM_SHARED(float, to, 12);
  for (int i = 0; i < 12; ++i) to[i] = 7;
  cp_async_16(to, from);
  cp_async_commit();
  cp_async_16(to + 4, from + 4);
  cp_async_commit();
  cp_async_16(to + 8, from + 8, 8);
  cp_async_commit();
  out[0] = to[0];
  cp_async_wait<2>();
  out[1] = to[1];
  out[2] = to[4];
  cp_async_wait<1>();
  out[3] = to[7];
  out[4] = to[8];
  cp_async_wait<0>();
  for (int i = 0; i < 4; ++i) out[5 + i] = to[8 + i];
  cp_async_16(to, nullptr, 0);
  cp_async_wait<0>();
  out[9] = to[3];  // never committed
  cp_async_commit();
  cp_async_wait<0>();
  out[10] = to[3];
}

__global__ void stream(const uint4* from, uint4* to) {
  to[threadIdx.x] = load_stream_16(from + threadIdx.x);
}

void test_copies() {
  std::vector<float> values(12);
  for (int i = 0; i < 12; ++i) values[i] = static_cast<float>(i + 1);
  float* from = upload(values);
  float* out = upload(std::vector<float>(11));
  SLICELLM_LAUNCH(copy_async, 1, 1, 0, nullptr, from, out);
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
  const std::vector<float> got = fetch(out, 11);
  CHECK(std::isnan(got[0]));
  CHECK(got[1] == 2 && std::isnan(got[2]));
  CHECK(got[3] == 8 && std::isnan(got[4]));
  CHECK(got[5] == 9 && got[6] == 10 && got[7] == 0 && got[8] == 0);
  CHECK(std::isnan(got[9]) && got[10] == 0);

  auto* copy = upload(std::vector<float>(12));
  SLICELLM_LAUNCH(stream, 1, 3, 0, nullptr, reinterpret_cast<const uint4*>(from),
                  reinterpret_cast<uint4*>(copy));
  CHECK(fetch(copy, 12) == values);
  cudaFree(from);
}

__global__ void bad_load(int lane, int offset) {
  SLICELLM_SHARED(uint16_t, rows, 256);
  uint32_t r[4];
  const int own = static_cast<int>(threadIdx.x);
  ldmatrix_x4(r, rows + 8 * own + (own == lane ? offset : 0));
}
__global__ void bad_copy(const float* from, int offset) {
  SLICELLM_SHARED(float, to, 8);
  cp_async_16(to + offset, from);
}
__global__ void partial_mma() {
  float d[4] = {};
  const uint32_t a[4] = {}, b[2] = {};
  if (threadIdx.x < 16) mma_m16n8k16<__half>(d, a, b);
}

bool reported(const char* what) {
  const cudaError_t error = cudaDeviceSynchronize();
  cudaGetLastError();
  const std::string text = cudaGetErrorString(error);
  if (error == cudaErrorLaunchFailure && text.find(what) != std::string::npos) return true;
  std::fprintf(stderr, "\"%s\" lacks \"%s\"\n", text.c_str(), what);
  return false;
}

void test_reports() {
  SLICELLM_LAUNCH(bad_load, 1, 32, 0, nullptr, 9, 4);
  CHECK(reported("ldmatrix: the address of lane 9 is not 16-byte aligned"));
  SLICELLM_LAUNCH(bad_load, 1, 32, 0, nullptr, 31, 8);
  CHECK(reported("ldmatrix: the 16 bytes of lane 31 are not in shared memory"));
  float* from = upload(std::vector<float>(4));
  SLICELLM_LAUNCH(bad_copy, 1, 1, 0, nullptr, from, 1);
  CHECK(reported("not 16-byte aligned"));
  SLICELLM_LAUNCH(bad_copy, 1, 1, 0, nullptr, from, 8);
  CHECK(reported("not in shared memory"));
  SLICELLM_LAUNCH(bad_copy, 1, 1, 0, nullptr, from + 4, 0);
  CHECK(reported("16 bytes into device memory of 16 bytes"));
  cudaFree(from);
  SLICELLM_LAUNCH(partial_mma, 1, 32, 0, nullptr);
  CHECK(reported("mma_m16n8k16"));
}

void test_lop3() {
  // The table of PTX's lop3: f(0xf0, 0xcc, 0xaa).
  CHECK((lop3<(0xf0 & 0xcc) | 0xaa>(0x12345678u, 0x0f0f0f0fu, 0x64006400u)) ==
        ((0x12345678u & 0x0f0f0f0fu) | 0x64006400u));
  CHECK((lop3<0xf0 ^ 0xcc ^ 0xaa>(5u, 9u, 0xffffffffu)) == (5u ^ 9u ^ 0xffffffffu));
}

}  // namespace

int main() {
  for (unsigned seed = 0; seed < 5; ++seed) {
    test_mma<__half>(seed);
    test_mma<__nv_bfloat16>(seed);
  }
  test_ldmatrix();
  test_copies();
  test_reports();
  test_lop3();
  return check_result();
}
