// What the GPU gets from cuda::Uploader, as bytes.
#include "test/ops/upload.h"

#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "slicellm/tensor.h"

#ifdef SLICELLM_CUDA
#include "cuda/upload.h"
#endif

namespace slicellm {

#ifdef SLICELLM_CUDA
namespace {

namespace py = pybind11;
using namespace cuda;

constexpr int kThreads = 2;

py::bytes download(const Stream& stream, const DeviceBuffer& buffer) {
  std::string bytes(buffer.bytes(), 0);
  stream.copy(bytes.data(), buffer.get(), bytes.size(), cudaMemcpyDeviceToHost);
  stream.synchronize();
  return bytes;
}

py::bytes upload_linear(const std::vector<Weight>& matrices,
                        const std::vector<std::vector<float>>& biases, bool gated,
                        size_t piece_bytes, bool in_place) {
  const Stream stream;
  Uploader uploader(stream, DeviceMemory(), in_place, kThreads, piece_bytes);
  return download(stream, uploader.linear(LinearPacker(matrices, biases, gated, kThreads)));
}

py::bytes upload_array(const std::string& array, size_t piece_bytes, bool in_place) {
  const Stream stream;
  Uploader uploader(stream, DeviceMemory(), in_place, kThreads, piece_bytes);
  const DeviceBuffer first = uploader.array(array.data(), array.size(), "array");
  const DeviceBuffer second = uploader.array(array.data(), array.size(), "array");
  uploader.finish();
  std::string both = download(stream, first);
  return both += download(stream, second);
}

}  // namespace

void bind_upload(py::module_& m) {
  m.def("upload_linear", &upload_linear, py::arg("matrices"), py::arg("biases"), py::arg("gated"),
        py::arg("piece_bytes"), py::arg("in_place"), "A packed layer as the GPU has it.");
  m.def("upload_array", &upload_array, py::arg("array"), py::arg("piece_bytes"),
        py::arg("in_place"), "An array as the GPU has it, uploaded twice.");
}
#else
void bind_upload(pybind11::module_& /*m*/) {}
#endif

}  // namespace slicellm
