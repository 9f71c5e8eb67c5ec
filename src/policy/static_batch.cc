#include "policy/static_batch.h"

#include <algorithm>

namespace slicellm {

StaticBatch::StaticBatch(const std::vector<int32_t>& slots, const View& view, int32_t limit)
    : limit_(limit), live_(static_cast<int32_t>(slots.size())) {
  for (int32_t slot : slots) {
    const TaskView& task = view.tasks[slot];
    const int32_t length = task.prompt_len + task.produced;
    members_.push_back({.slot = slot, .length = length});
    length_ = std::max(length_, length);
    longest_ = std::max(longest_, task.prompt_len + task.max_tokens);
  }
  for (const Member& m : members_) {
    if (m.length < length_) pads_.push_back(length_ - m.length);
  }
}

int64_t StaticBatch::blocks_needed(int64_t rows, int64_t length, int64_t limit, const View& view) {
  // A lone row has no pads, and its last token needs no KV. The pads of a prompt have blocks of
  // their own while they are computed: at most one block more than the longest prompt needs.
  if (rows == 1) return view.blocks_for(length + limit - 1);
  return rows * view.blocks_for(length + std::max<int64_t>(limit, view.block_tokens));
}

std::vector<int32_t> StaticBatch::live() const {
  std::vector<int32_t> slots;
  for (const Member& m : members_) {
    if (!m.ended) slots.push_back(m.slot);
  }
  return slots;
}

bool StaticBatch::prefilled() const {
  return pads_.empty() && std::all_of(members_.begin(), members_.end(),
                                      [](const Member& m) { return m.started || m.ended; });
}

void StaticBatch::plan(StepBuilder& step) const {
  if (decoding()) {
    for (const Member& m : members_) {
      if (m.ended) {
        step.pad_row(std::min(m.length + generated_, longest_) - 1);
      } else {
        step.decode(m.slot);
      }
    }
    return;
  }
  for (const Member& m : members_) {
    if (m.started || m.ended) continue;
    // The last token of an input that was cut is a decode row.
    const bool row = step.view().tasks[m.slot].ready_to_decode();
    const bool fits = row ? step.decode(m.slot) : step.prefill(m.slot, step.whole_prefill(m.slot));
    if (!fits) return;
  }
  for (auto pads = pads_.rbegin(); pads != pads_.rend(); ++pads) {
    if (step.pad_prompt(*pads) < *pads) return;
  }
}

void StaticBatch::commit(const StepPlan& plan, const StepOutcome& outcome) {
  if (decoding()) {
    ++generated_;
    return;
  }
  for (int32_t pads : plan.padding.prompts) {
    if ((pads_.back() -= pads) == 0) pads_.pop_back();
  }
  for (int32_t slot : outcome.token_slots) {
    for (Member& m : members_) {
      if (m.slot == slot && !m.ended) m.started = true;
    }
  }
  if (prefilled()) generated_ = 1;
}

bool StaticBatch::finish(int32_t slot) {
  for (Member& m : members_) {
    if (m.ended || m.slot != slot) continue;
    m.ended = true;
    --live_;
    // Nobody else to wait for: the others have their first token.
    if (!decoding() && prefilled()) generated_ = 1;
    return true;
  }
  return false;
}

}  // namespace slicellm
