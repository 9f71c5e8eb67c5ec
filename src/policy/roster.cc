#include "policy/roster.h"

#include <algorithm>

#include "policy/json.h"

namespace slicellm {

void Roster::arrive(int32_t slot, double rank, const View& view) {
  if (never_run_.arrive(slot, view)) return;
  const TaskView& task = view.tasks[slot];
  if (entries_.size() <= static_cast<size_t>(slot)) entries_.resize(slot + 1);
  entries_[slot] = {rank, task.arrival, task.id, slot};
  waiting_.insert(entries_[slot]);
}

void Roster::finish(int32_t slot) {
  if (never_run_.finish(slot)) return;
  if (std::erase(running_, slot) == 0) waiting_.erase(entries_[slot]);
}

void Roster::commit(const StepPlan& plan) {
  for (const KvAction& action : plan.kv) {  // drops
    std::erase(running_, action.slot);
    waiting_.insert(entries_[action.slot]);
  }
  for (const PrefillChunk& chunk : plan.prefill) {
    Ranked& entry = entries_[chunk.slot];
    if (waiting_.erase(entry) == 0) continue;
    if (preemption_ == Preemption::youngest_to_front) entry.rank = kFrontRank;
    const auto before = [&](int32_t a, int32_t b) { return entries_[a] < entries_[b]; };
    running_.insert(std::upper_bound(running_.begin(), running_.end(), chunk.slot, before),
                    chunk.slot);
  }
}

std::vector<int32_t> Roster::waiting() const {
  std::vector<int32_t> slots;
  for (const Ranked& entry : waiting_) slots.push_back(entry.slot);
  return slots;
}

Roster::Kept Roster::keep(const View& view) const {
  const auto growth = [&](int32_t slot) {
    const TaskView& task = view.tasks[slot];
    return view.blocks_for(int64_t{task.prompt_len} + task.produced) - task.blocks;
  };
  int64_t spare = view.free_blocks;
  int32_t decodes = 0;
  for (int32_t slot : running_) {
    spare -= growth(slot);
    decodes += view.tasks[slot].ready_to_decode();
  }
  size_t count = running_.size();
  while (spare < 0 && count > 1) {  // one alone fits
    const int32_t slot = running_[--count];
    spare += growth(slot) + view.tasks[slot].freed();
    decodes -= view.tasks[slot].ready_to_decode();
  }
  const std::span<const int32_t> all(running_);
  return {all.first(count), all.subspan(count), decodes, spare};
}

void Roster::admit(StepBuilder& step, int32_t max_running, int64_t spare_blocks,
                   int32_t (StepBuilder::*tokens)(int32_t) const) const {
  const View& view = step.view();
  const size_t room = std::min(max_running, view.max_rows);
  size_t running = running_.size();
  for (const Ranked& entry : waiting_) {
    if (running >= room) break;
    const int64_t blocks = view.blocks_for(view.tasks[entry.slot].pending());
    if (blocks > spare_blocks && running > 0) break;
    if (!step.prefill(entry.slot, (step.*tokens)(entry.slot))) break;
    spare_blocks -= blocks;
    ++running;
  }
}

std::string RosterPolicy::inspect() const {
  return JsonObject().add("running", roster_.running()).add("waiting", roster_.waiting()).text();
}

}  // namespace slicellm
