#include "engine/executor_tasks.h"

#include <string>

#include "slicellm/error.h"

namespace slicellm {

void ExecutorTasks::add(const ExecutorTask& task) {
  Task state{.sampling = task.sampling, .true_output_tokens = task.true_output_tokens};
  if (task.sampling.repetition_penalty != 1) {
    for (int32_t id : task.prompt) state.note(id);
  }
  if (!tasks_.emplace(task.id, std::move(state)).second) {
    throw Error(ErrorKind::state, "task", std::to_string(task.id) + " twice", "a new task");
  }
}

ExecutorTasks::Task& ExecutorTasks::at(TaskId id) {
  auto it = tasks_.find(id);
  if (it == tasks_.end()) {
    throw Error(ErrorKind::state, "task", std::to_string(id), "one that was added");
  }
  return it->second;
}

RowResult ExecutorTasks::commit(TaskId id, int32_t token) {
  RowResult row;
  row.task = id;
  row.token = token;
  row.invalid = token < 0;
  finish(at(id), row);
  return row;
}

RowResult ExecutorTasks::sample(TaskId id, std::span<const float> logits) {
  Task& task = at(id);
  RowResult row;
  row.task = id;
  sampler_.sample(task.sampling, logits, task.seen, static_cast<uint64_t>(task.produced), row);
  finish(task, row);
  return row;
}

void ExecutorTasks::finish(Task& task, RowResult& row) {
  if (row.invalid) return;
  ++task.produced;
  task.last = row.token;
  if (task.sampling.repetition_penalty != 1) task.note(row.token);
  row.ended = task.true_output_tokens > 0 && task.produced >= task.true_output_tokens;
}

}  // namespace slicellm
