// Drawing of tokens as the executors do it: on the host, or by the kernels of the GPU.
#include "test/ops/sampling.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <string>
#include <tuple>
#include <vector>

#include "engine/sampling.h"
#ifdef SLICELLM_CUDA
#include "cuda/sampler.h"
#endif

namespace slicellm {
namespace {

namespace py = pybind11;

using Array = py::array_t<float, py::array::c_style | py::array::forcecast>;
// row of the logits, temperature, top_k, top_p, min_p, seed, position
using Draw = std::tuple<int32_t, double, int32_t, double, double, uint64_t, uint64_t>;

Sampling sampling_of(const Draw& draw) {
  Sampling s;
  std::tie(std::ignore, s.temperature, s.top_k, s.top_p, s.min_p, s.seed, std::ignore) = draw;
  return s;
}

std::vector<int32_t> draw_on_host(const Array& logits, const std::vector<Draw>& draws) {
  Sampler sampler;
  std::vector<int32_t> tokens;
  const auto vocab = static_cast<size_t>(logits.shape(1));
  for (const Draw& draw : draws) {
    RowResult result;
    sampler.sample(sampling_of(draw), {logits.data(std::get<0>(draw), 0), vocab}, {},
                   std::get<6>(draw), result);
    tokens.push_back(result.invalid ? -1 : result.token);
  }
  return tokens;
}

#ifdef SLICELLM_CUDA
std::vector<int32_t> draw_on_gpu(const Array& logits, const std::vector<Draw>& draws) {
  using namespace cuda;
  const auto vocab = static_cast<int32_t>(logits.shape(1));
  std::vector<SampleRow> rows;
  for (const Draw& draw : draws) {
    rows.push_back(
        DeviceSampler::make_row(sampling_of(draw), std::get<6>(draw), std::get<0>(draw)));
  }
  const size_t bytes = sizeof(float) * static_cast<size_t>(logits.size());
  const Stream stream;
  const DeviceMemory memory;
  const DeviceBuffer device_logits(memory, bytes, "logits");
  stream.copy(device_logits.get(), logits.data(), bytes, cudaMemcpyHostToDevice);
  DeviceSampler sampler(stream, memory);
  PinnedBuffer tokens;
  sampler.prepare(device_logits.get<float>(), vocab, rows);
  sampler.draw(stream);
  sampler.fetch(tokens);
  stream.synchronize();
  return {tokens.get<int32_t>(), tokens.get<int32_t>() + rows.size()};
}
#endif

std::vector<int32_t> draw(const std::string& device, const Array& logits,
                          const std::vector<Draw>& draws) {
  if (device == "cpu") return draw_on_host(logits, draws);
#ifdef SLICELLM_CUDA
  return draw_on_gpu(logits, draws);
#else
  throw py::value_error("no CUDA in this build");
#endif
}

}  // namespace

void bind_sampling(py::module_& m) {
  m.def("draw", &draw, py::arg("device"), py::arg("logits"), py::arg("draws"),
        "Tokens for (row of logits [n, vocab], temperature, top_k, top_p, min_p, seed, position) "
        "each; -1 for invalid logits. `device`: cpu or cuda.");
}

}  // namespace slicellm
