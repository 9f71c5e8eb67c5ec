#include "engine/task_table.h"

#include <algorithm>

namespace slicellm {

int32_t TaskTable::find(TaskId id) const {
  auto it = slots_.find(id);
  return it == slots_.end() ? -1 : it->second;
}

std::vector<int32_t>::iterator TaskTable::place(const TaskView& view) {
  auto before = [this, &view](int32_t slot) {
    const TaskView& other = views_[slot];
    return other.arrival != view.arrival ? other.arrival < view.arrival : other.id < view.id;
  };
  // Most tasks come last.
  if (live_.empty() || before(live_.back())) return live_.end();
  return std::partition_point(live_.begin(), live_.end(), before);
}

int32_t TaskTable::insert(std::unique_ptr<TaskState> task, bool prefill_divisible) {
  int32_t slot;
  if (free_slots_.empty()) {
    slot = static_cast<int32_t>(views_.size());
    views_.emplace_back();
    states_.emplace_back();
  } else {
    slot = free_slots_.back();
    free_slots_.pop_back();
  }
  TaskView& view = views_[slot];
  view = {};
  view.id = task->id;
  view.class_id = task->class_id;
  view.utility = task->spec.utility;
  view.slo = task->spec.slo;
  view.arrival = task->arrival;
  view.prompt_len = task->prompt_len;
  view.max_tokens = task->spec.max_tokens;
  view.prefill_divisible = prefill_divisible;
  slots_.emplace(task->id, slot);
  live_.insert(place(view), slot);
  states_[slot] = std::move(task);
  return slot;
}

void TaskTable::retire(int32_t slot) {
  live_.erase(place(views_[slot]));
  slots_.erase(views_[slot].id);
}

void TaskTable::clear(int32_t slot) {
  views_[slot] = {};
  states_[slot].reset();
  free_slots_.push_back(slot);
}

void TaskTable::sync_kv(int32_t slot) {
  const BlockTable& kv = states_[slot]->kv;
  views_[slot].kv = kv.state;
  views_[slot].blocks = static_cast<int32_t>(kv.blocks.size());
  views_[slot].shared = std::min(views_[slot].shared, views_[slot].blocks);
}

}  // namespace slicellm
