#include "cuda/sampler.h"

#include <algorithm>

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

void DeviceSampler::draw(const float* logits, int32_t vocab, std::span<const SampleRow> rows,
                         PinnedBuffer& tokens) {
  staging_.begin();
  SampleCall call;
  call.logits = logits;
  call.vocab = vocab;
  call.rows = staging_.put(rows);
  staging_.flush();
  call.n = static_cast<int32_t>(rows.size());
  call.draws = std::ranges::any_of(rows, [](const SampleRow& r) { return r.temperature != 0; });
  workspace_.reserve(sample_workspace_bytes(vocab, call.n), "workspace");
  call.workspace = workspace_.get();
  const size_t bytes = sizeof(int32_t) * rows.size();
  tokens_.reserve(bytes, "workspace");
  call.tokens = tokens_.get<int32_t>();
  sample_rows(stream_, call);
  tokens.reserve(bytes, "tokens");
  stream_.copy(tokens.get(), tokens_.get(), bytes, cudaMemcpyDeviceToHost);
}

}  // namespace slicellm::cuda
