#include "cuda/sampler.h"

#include <algorithm>
#include <bit>

#include "engine/sampling.h"

namespace slicellm::cuda {

bool DeviceSampler::can_draw(const Sampling& sampling, int32_t vocab) {
  return sampling.repetition_penalty == 1 && sampling.logprobs < 0 && vocab <= kMaxVocabulary;
}

SampleRow DeviceSampler::make_row(const Sampling& sampling, uint64_t position, int32_t row) {
  SampleRow result;
  result.temperature = sampling.temperature;
  result.top_p = sampling.top_p;
  result.min_p = sampling.min_p;
  result.uniform = static_cast<uint64_t>(uniform_at(sampling.seed, position) * 0x1p53);
  result.row = row;
  result.top_k = sampling.top_k;
  return result;
}

void DeviceSampler::prepare(const float* logits, int32_t vocab, std::span<const SampleRow> rows) {
  call_ = {};
  if (rows.empty()) return;
  staging_.begin();
  call_.logits = logits;
  call_.vocab = vocab;
  call_.rows = staging_.put(rows);
  staging_.flush();
  call_.n = static_cast<int32_t>(rows.size());
  call_.draws = std::ranges::any_of(rows, [](const SampleRow& r) { return r.temperature != 0; });
  workspace_.reserve(sample_workspace_bytes(vocab, call_.n), "workspace");
  call_.workspace = workspace_.get();
  const size_t bytes = sizeof(int32_t) * rows.size();
  if (bytes > tokens_.bytes()) {  // what was drawn last is still to be read
    DeviceBuffer larger(memory_, std::bit_ceil(bytes), "workspace");
    stream_.copy(larger.get(), tokens_.get(), tokens_.bytes(), cudaMemcpyDeviceToDevice);
    tokens_ = std::move(larger);
  }
  call_.tokens = tokens_.get<int32_t>();
}

void DeviceSampler::fetch(PinnedBuffer& tokens) const {
  const size_t bytes = sizeof(int32_t) * static_cast<size_t>(call_.n);
  tokens.reserve(bytes, "tokens");
  stream_.copy(tokens.get(), call_.tokens, bytes, cudaMemcpyDeviceToHost);
}

void DeviceSampler::add_to(Signature& signature) const {
  signature.insert(signature.end(),
                   {number_of(call_.logits), static_cast<uint64_t>(call_.vocab),
                    number_of(call_.rows), static_cast<uint64_t>(call_.n), call_.draws,
                    number_of(call_.workspace), number_of(call_.tokens)});
}

}  // namespace slicellm::cuda
