// What a build without CUDA has in the place of src/cuda.
#include <string>

#include "engine/executors.h"
#include "slicellm/error.h"
#include "slicellm/ops.h"

namespace slicellm {
namespace {

[[noreturn]] void fail(int index) {
  throw Error(ErrorKind::unsupported, "device", "\"cuda:" + std::to_string(index) + '"',
              "\"cpu\", as this build has no CUDA (USE_CUDA=OFF, or no nvcc when it was made)");
}

}  // namespace

std::shared_ptr<Device> make_cuda_device(int index, const GpuOptions& /*options*/) { fail(index); }

std::shared_ptr<Executor> make_cuda_executor(std::shared_ptr<Model> /*model*/,
                                             int32_t /*device_blocks*/, int32_t /*host_blocks*/) {
  fail(0);
}

}  // namespace slicellm
