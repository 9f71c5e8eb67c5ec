#pragma once

#include <cstdint>

#include "cuda/memory.h"
#include "cuda/runtime.h"
#include "slicellm/ops.h"

namespace slicellm::cuda {

// A rotary table in device memory.
class CudaRope final : public PackedRope {
 public:
  // Copies the table before it returns.
  CudaRope(const Stream& stream, const DeviceMemory& memory, const RopeTable& table)
      : style(table.style),
        rotary_dim(table.rotary_dim),
        positions(table.positions),
        bytes_(table.cos.size() * sizeof(float)),
        memory_(memory, 2 * bytes_, "rope") {
    stream.copy(memory_.get(), table.cos.data(), bytes_, cudaMemcpyHostToDevice);
    stream.copy(memory_.get() + bytes_, table.sin.data(), bytes_, cudaMemcpyHostToDevice);
    stream.synchronize();
  }

  const RopeStyle style;
  const int32_t rotary_dim;
  const int32_t positions;
  const float* cos() const { return memory_.get<float>(); }  // [positions, rotary_dim/2]
  const float* sin() const { return reinterpret_cast<const float*>(memory_.get() + bytes_); }

 private:
  size_t bytes_;
  DeviceBuffer memory_;
};

}  // namespace slicellm::cuda
