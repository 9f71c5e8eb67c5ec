#pragma once

#include <cstdint>
#include <span>

#include "cuda/runtime.h"
#include "cuda/sampling.h"
#include "cuda/staging.h"
#include "slicellm/task.h"

namespace slicellm::cuda {

// Draws the tokens of a step on the device, as Sampler (engine/sampling.h) does on the host. Keeps
// its device memory from step to step; two steps may be in flight. For one stream and one thread.
class DeviceSampler {
 public:
  explicit DeviceSampler(const Stream& stream) : stream_(stream), staging_(stream) {}

  // Log-probabilities and repetition penalties are the host's.
  static bool can_draw(const Sampling& sampling, int32_t vocab);
  // `position` = output tokens so far, `row` of the logits.
  static SampleRow make_row(const Sampling& sampling, uint64_t position, int32_t row);

  // Starts drawing from logits[*, vocab] on the device; once the stream has passed, the tokens are
  // in `tokens`, int32 [rows.size()], -1 for invalid logits. `tokens` must not be in use.
  void draw(const float* logits, int32_t vocab, std::span<const SampleRow> rows,
            PinnedBuffer& tokens);
  // Where the device holds what it drew last, until the next `draw` has passed on the stream.
  const int32_t* drawn() const { return tokens_.get<int32_t>(); }

 private:
  const Stream& stream_;
  StepStaging staging_;
  DeviceBuffer workspace_, tokens_;
};

}  // namespace slicellm::cuda
