#include "engine/drafts.h"

namespace slicellm {
namespace {

constexpr size_t kLongestMatch = 3, kShortestMatch = 2;  // tokens
// Weights of one draft in what is believed of a task's drafts. While none are tried, the belief
// goes back to where it began, so that a text that begins to repeat itself is found out.
constexpr double kBegin = 0.5, kLearn = 0.1, kForget = 0.01;

}  // namespace

void look_up(std::span<const int32_t> tokens, int32_t most, std::vector<int32_t>& drafts) {
  drafts.clear();
  const size_t size = tokens.size();
  if (size <= kShortestMatch || most <= 0) return;
  size_t found = 0, longest = kShortestMatch - 1;  // where what follows begins; tokens that match
  for (size_t end = size - 1; end >= kShortestMatch && longest < kLongestMatch; --end) {
    if (tokens[end - 1] != tokens[size - 1]) continue;
    size_t match = 1;
    while (match < std::min(end, kLongestMatch) &&
           tokens[end - 1 - match] == tokens[size - 1 - match]) {
      ++match;
    }
    if (match > longest) {
      longest = match;
      found = end;
    }
  }
  if (found == 0) return;
  for (size_t i = found; drafts.size() < static_cast<size_t>(most); ++i) {
    drafts.push_back(i < size ? tokens[i] : drafts[i - size]);
  }
}

void DraftHistory::note(int32_t tried, int32_t right) {
  if (tried == 0) acceptance_ += kForget * (kBegin - acceptance_);
  for (int32_t i = 0; i < right; ++i) acceptance_ += kLearn * (1 - acceptance_);
  if (right < tried) acceptance_ -= kLearn * acceptance_;
}

DraftBudget::DraftBudget(const LatencyModel& latency, const StepFeatures& step,
                         double smallest_tpot)
    : latency_(latency),
      step_(step),
      tokens_(step.rows),
      seconds_(latency.predict(step).median),
      limit_(std::max(seconds_, smallest_tpot)) {}

int32_t DraftBudget::take(int32_t context, double acceptance, int32_t most) {
  StepFeatures step = step_;
  double tokens = tokens_, all_right = 1;
  int32_t best = 0;
  for (int32_t count = 1; count <= most; ++count) {
    ++step.tokens;
    ++step.rows;
    step.context += context + count;
    all_right *= acceptance;
    tokens += all_right;
    const double seconds = latency_.predict(step).median;
    if (seconds > limit_) break;
    if (tokens * seconds_ <= tokens_ * seconds) continue;
    best = count;
    step_ = step;
    tokens_ = tokens;
    seconds_ = seconds;
  }
  return best;
}

}  // namespace slicellm
