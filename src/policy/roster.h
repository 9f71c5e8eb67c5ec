#pragma once

#include <cstdint>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "policy/never_run.h"
#include "policy/step_builder.h"

namespace slicellm {

// Who runs and who waits, for policies that admit tasks in an order of their own and take KV back
// by recompute. A task runs from its first prefill until it ends or is dropped; a waiting task
// holds no KV. An event costs O(running + log waiting), a commit that for each task it moves.
class Roster {
 public:
  enum class Preemption {
    youngest_to_front,  // the last arrival is dropped, and waits before all that never ran
    last_rank,          // the last by rank is dropped, and waits where its rank says
  };
  explicit Roster(Preemption preemption) : preemption_(preemption) {}

  // Lower ranks wait first; equal ranks by arrival. Tasks that can never run are kept apart.
  void arrive(int32_t slot, double rank, const View& view);
  void finish(int32_t slot);
  // Waiting tasks that `plan` prefills run; running ones that it drops wait.
  void commit(const StepPlan& plan);
  // Gives the waiting tasks that have not run yet another rank: rank_of(slot).
  template <typename RankOf>
  void rank_again(RankOf rank_of);

  const std::vector<int32_t>& running() const { return running_; }  // to be dropped last first
  std::vector<int32_t> waiting() const;                             // for `inspect`

  // The running tasks that keep their KV: as many of the first as can all append what they have
  // pending, be it one token or the rest of a prompt.
  struct Kept {
    std::span<const int32_t> running, dropped;
    int32_t decodes = 0;       // of `running`
    int64_t spare_blocks = 0;  // free beside what they append
  };
  Kept keep(const View& view) const;

  // Ends tasks that can never run.
  void reject_impossible(StepBuilder& step) const { never_run_.reject(step); }
  // Admits waiting tasks in order, nobody overtaking, while fewer than `max_running` run,
  // `spare_blocks` hold all that the next has pending, and (step.*tokens)(slot) gives it a chunk. A
  // task that would run alone needs no more than free blocks.
  void admit(StepBuilder& step, int32_t max_running, int64_t spare_blocks,
             int32_t (StepBuilder::*tokens)(int32_t) const) const;

 private:
  const Preemption preemption_;
  std::vector<Ranked> entries_;  // by slot
  std::vector<int32_t> running_;
  std::set<Ranked> waiting_;
  NeverRun never_run_;
};

// A policy whose state is a roster.
class RosterPolicy : public Policy {
 public:
  void commit(const StepPlan& plan, const StepOutcome&, const View&) override {
    roster_.commit(plan);
  }
  std::string inspect() const override;

 protected:
  explicit RosterPolicy(Roster::Preemption preemption) : roster_(preemption) {}

  Roster roster_;
};

template <typename RankOf>
void Roster::rank_again(RankOf rank_of) {
  std::set<Ranked> waiting;
  for (Ranked entry : waiting_) {
    if (entry.rank != kFrontRank) entry.rank = rank_of(entry.slot);
    entries_[entry.slot] = entry;
    waiting.insert(entry);
  }
  waiting_ = std::move(waiting);
}

}  // namespace slicellm
