#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "engine/sampling.h"
#include "slicellm/executor.h"

namespace slicellm {

// What an executor knows of its tasks, and the drawing of their tokens on the host.
class ExecutorTasks {
 public:
  struct Task {
    Sampling sampling;
    int32_t true_output_tokens = 0;
    int32_t produced = 0;
    int32_t last = 0;  // the token drawn last
    // Where a device draws: tokens drawn or being drawn, and the last one's place in its step.
    int32_t started = 0, place = 0;
    // Distinct ids of prompt and output, kept only for a repetition penalty.
    std::vector<int32_t> seen = {};
    std::unordered_set<int32_t> seen_set = {};

    void note(int32_t id) {
      if (seen_set.insert(id).second) seen.push_back(id);
    }
  };

  // Throws Error(state) for a task that is there already.
  void add(const ExecutorTask& task);
  void remove(TaskId id) { tasks_.erase(id); }
  Task& at(TaskId id);  // throws Error(state) for a task that is not there
  const Task& at(TaskId id) const { return const_cast<ExecutorTasks*>(this)->at(id); }

  // The row of a task whose token was drawn elsewhere; a token below 0 stands for invalid logits.
  RowResult commit(TaskId id, int32_t token);
  // Draws the task's token from logits[vocab] on the host.
  RowResult sample(TaskId id, std::span<const float> logits);
  // Appends the tokens of a sequence to `rows`: draw(i) gives the one after i of its drafts, and is
  // called as long as the drafts before it turned out right.
  template <typename Draw>
  static void confirm(std::span<const int32_t> drafts, Draw draw, std::vector<RowResult>& rows) {
    for (size_t i = 0;; ++i) {
      const RowResult& row = rows.emplace_back(draw(i));
      if (i == drafts.size() || row.invalid || row.ended || row.token != drafts[i]) return;
    }
  }

 private:
  static void finish(Task& task, RowResult& row);

  std::unordered_map<TaskId, Task> tasks_;
  Sampler sampler_;
};

}  // namespace slicellm
