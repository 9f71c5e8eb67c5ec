#pragma once

#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/drafts.h"
#include "engine/handle.h"
#include "engine/text.h"
#include "kv/ledger.h"
#include "slicellm/policy.h"
#include "slicellm/task.h"

namespace slicellm {

// Everything the loop knows of a task beside what policies see. Kept at a stable address.
struct TaskState {
  TaskState(TaskSpec task, TaskId task_id, int32_t class_number, double arrival_time,
            const std::vector<std::string>& token_bytes)
      : spec(std::move(task)),
        id(task_id),
        class_id(class_number),
        arrival(arrival_time),
        prompt_len(static_cast<int32_t>(spec.prompt.size())),
        handle(std::make_shared<TaskResultBox>(id, arrival, prompt_len)),
        text(token_bytes, spec.stop) {
    tokens.swap(spec.prompt);
  }
  TaskState(const TaskState&) = delete;
  TaskState& operator=(const TaskState&) = delete;

  TaskSpec spec;  // without its prompt
  const TaskId id;
  const int32_t class_id;
  const double arrival;
  const int32_t prompt_len;
  std::vector<int32_t> tokens;  // prompt, then output as far as it is known
  BlockTable kv;
  int32_t reached = 0;  // the most tokens that its KV has held
  double first_token_time = std::numeric_limits<double>::quiet_NaN();
  double last_token_time = std::numeric_limits<double>::quiet_NaN();
  int32_t predicted = 0;     // tokens that its row counts and steps in flight have yet to yield
  int32_t steps = 0;         // in flight that it takes part in
  bool told = false;         // its caller knows that it has ended
  BlockTable released;       // what it held when it left with a step in flight
  bool admitted = false;     // the executor knows it
  bool interrupted = false;  // dropped or swapped out since it last ran
  DraftHistory drafts;
  std::shared_ptr<TaskResultBox> handle;
  TextAssembler text;

  int32_t produced() const { return static_cast<int32_t>(tokens.size()) - prompt_len; }
  // The time after which it ends, where it asked for that.
  std::optional<double> ends_at() const {
    if (!spec.stop_at_deadline) return std::nullopt;
    return arrival + *spec.slo.deadline;
  }
};

// The tasks that have arrived and not ended, in slots. A slot is reused after its task has left.
// Not thread-safe: used by the engine thread.
class TaskTable {
 public:
  std::span<const TaskView> views() const { return views_; }
  std::span<const int32_t> live() const { return live_; }  // by arrival, then id
  TaskView& view(int32_t slot) { return views_[slot]; }
  TaskState& state(int32_t slot) { return *states_[slot]; }
  int32_t find(TaskId id) const;  // slot, or -1

  // The task's slot. Cheap for tasks that come in order of their arrival.
  int32_t insert(std::unique_ptr<TaskState> task, bool prefill_divisible);
  // Takes a task out of `live`; its row stays readable until `clear`.
  void retire(int32_t slot);
  void clear(int32_t slot);
  // Copies what the KV table says into the row.
  void sync_kv(int32_t slot);

 private:
  std::vector<int32_t>::iterator place(const TaskView& view);

  std::vector<TaskView> views_;
  std::vector<std::unique_ptr<TaskState>> states_;
  std::vector<int32_t> live_, free_slots_;
  std::unordered_map<TaskId, int32_t> slots_;
};

}  // namespace slicellm
