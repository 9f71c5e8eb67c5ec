#include <charconv>
#include <string>

#include "slicellm/error.h"
#include "slicellm/ops.h"

namespace slicellm {

std::unique_ptr<PackedLinear> Device::restore(const std::string&, size_t, bool, const ReadPanels&) {
  throw Error(ErrorKind::unsupported, "device", name(), "one that restores packed weights");
}

std::shared_ptr<Device> make_device(std::string_view name, const CpuOptions& cpu,
                                    const GpuOptions& gpu) {
  if (name == "cpu") return make_cpu_device(cpu);
  if (name == "numa") return make_numa_device(cpu);
  if (name == "cuda") return make_cuda_device(0, gpu);
  constexpr std::string_view prefix = "cuda:";
  if (name.starts_with(prefix)) {
    int index = 0;
    const char* end = name.data() + name.size();
    const auto [last, error] = std::from_chars(name.data() + prefix.size(), end, index);
    if (error == std::errc() && last == end && index >= 0) return make_cuda_device(index, gpu);
  }
  throw Error(ErrorKind::invalid_argument, "device", '"' + std::string(name) + '"',
              "cpu, numa, cuda or cuda:<number>");
}

}  // namespace slicellm
