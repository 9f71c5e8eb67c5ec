#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>

#include "slicellm/policy.h"

namespace slicellm {

// Builds a plan that keeps within a view's rows, tokens and KV blocks. Policies decide the order,
// this class does the accounting. A slot may be added to the step at most once.
class StepBuilder {
 public:
  // At most min(max_rows, view.max_rows) rows and `max_prompt_tokens` tokens of prefill.
  StepBuilder(const View& view, int32_t max_rows,
              int32_t max_prompt_tokens = std::numeric_limits<int32_t>::max());

  const View& view() const { return view_; }
  int32_t rows_left() const { return rows_left_; }
  int32_t tokens_left() const { return tokens_left_; }
  int32_t free_blocks() const { return free_; }
  int32_t free_host_blocks() const { return free_host_; }
  const StepPlan& plan() const { return plan_; }

  // Device blocks to allocate before `slot` can append `tokens` tokens to its KV.
  int32_t growth(int32_t slot, int32_t tokens) const;
  // Tokens of prefill for policies that cut prompts only where they must, whatever the blocks: all
  // that are pending; or what is left of the step, when it has no other prefill and the task's may
  // be cut; or 0: not in this step.
  int32_t whole_prefill(int32_t slot) const;
  // Tokens of prefill for policies that cut prompts to fill a step: what is left of the step's
  // prompt tokens, or what whole_prefill says for a task whose prefill must not be cut.
  int32_t chunk(int32_t slot) const;

  // Each returns false and changes nothing when there is no row, token or block left for it.
  bool decode(int32_t slot);                   // ready to decode; KV on the device or swapped in
  bool prefill(int32_t slot, int32_t tokens);  // not ready to decode; KV likewise, or none
  bool swap_in(int32_t slot);                  // KV on the host
  bool swap_out(int32_t slot);                 // KV on the device
  bool pad_row(int32_t context);               // a row past its task's end
  // At most `tokens` pad tokens of a prompt, as many as there is room for; returns their number.
  int32_t pad_prompt(int32_t tokens);
  // Frees a task's device blocks. A task that could not be computed again ends as rejected.
  void drop(int32_t slot);
  // Frees a task's device blocks: to the host if there is room, else by dropping them.
  void evict(int32_t slot);
  void reject(int32_t slot, std::string message);
  void wake_at(double time) { plan_.wake_at = time; }

  StepPlan take() { return std::move(plan_); }

 private:
  const View& view_;
  StepPlan plan_;
  int32_t rows_left_, tokens_left_, prompt_left_, free_, free_host_;
};

// First come first served, equal arrivals by id.
inline bool arrives_before(const TaskView& a, const TaskView& b) {
  return a.arrival != b.arrival ? a.arrival < b.arrival : a.id < b.id;
}

// A task in an order: by rank, lower first, equal ranks by arrival, then id.
struct Ranked {
  double rank = 0;
  double arrival = 0;
  TaskId id = 0;
  int32_t slot = 0;
  auto operator<=>(const Ranked&) const = default;
};
constexpr double kFrontRank = -std::numeric_limits<double>::infinity();
constexpr double kBackRank = std::numeric_limits<double>::infinity();

template <typename Queue>
void insert_by_arrival(Queue& queue, int32_t slot, const View& view) {
  const auto later = [&](int32_t a, int32_t b) {
    return arrives_before(view.tasks[a], view.tasks[b]);
  };
  queue.insert(std::upper_bound(queue.begin(), queue.end(), slot, later), slot);
}

// The most tokens of KV that `task` can come to need: the last token's K and V are never used.
inline int64_t most_kv_tokens(const TaskView& task) {
  return int64_t{task.prompt_len} + task.max_tokens - 1;
}

// KV blocks that `task` can still come to ask for.
inline int32_t most_growth(const TaskView& task, const View& view) {
  return std::max(0, view.blocks_for(most_kv_tokens(task)) - task.blocks);
}

// Seconds between tokens that `task`'s SLO asks for: its TPOT, or an even share of its deadline.
// None for a best-effort task.
inline std::optional<double> token_time(const TaskView& task) {
  if (task.slo.tpot) return task.slo.tpot;
  if (task.slo.deadline) return *task.slo.deadline / std::max(1, task.max_tokens);
  return std::nullopt;
}

// Why `task` can never run under `view`'s limits, as one sentence; empty if it can.
std::string never_runs(const TaskView& task, const View& view);

}  // namespace slicellm
