#pragma once

#include <cstdint>
#include <span>

#include "cuda/memory.h"
#include "cuda/runtime.h"
#include "cuda/sampling.h"
#include "cuda/signature.h"
#include "cuda/staging.h"
#include "slicellm/task.h"

namespace slicellm::cuda {

// Draws the tokens of a step on the device, as Sampler (engine/sampling.h) does on the host. Keeps
// its device memory from step to step; two steps may be in flight. For one stream and one thread.
class DeviceSampler {
 public:
  DeviceSampler(const Stream& stream, const DeviceMemory& memory)
      : stream_(stream),
        memory_(memory),
        staging_(stream, memory),
        workspace_(memory),
        tokens_(memory) {}

  // Log-probabilities and repetition penalties are the host's.
  static bool can_draw(const Sampling& sampling, int32_t vocab);
  // `position` = output tokens so far, `row` of the logits.
  static SampleRow make_row(const Sampling& sampling, uint64_t position, int32_t row);

  // A drawing in three parts. prepare() sends what the kernels need to draw from logits[*, vocab]
  // on the device.
  void prepare(const float* logits, int32_t vocab, std::span<const SampleRow> rows);
  // Launches them on `stream`.
  void draw(const Stream& stream) const { sample_rows(stream, call_); }
  // Once the stream has passed, the tokens are in `tokens`, int32 [rows.size()], -1 for invalid
  // logits. `tokens` must not be in use.
  void fetch(PinnedBuffer& tokens) const;
  // Adds what the launches take from the host.
  void add_to(Signature& signature) const;
  // Where the device holds what it drew last, from prepare() until draw() has passed.
  const int32_t* drawn() const { return tokens_.get<int32_t>(); }

 private:
  const Stream& stream_;
  const DeviceMemory memory_;
  StepStaging staging_;
  DeviceBuffer workspace_, tokens_;
  SampleCall call_;
};

}  // namespace slicellm::cuda
