// sarathi: stall-free batching with chunked prefills (Agrawal et al., OSDI'24, section 4).
//
// A step has a token budget: one token for every running decode, then chunks of the prompts that
// have started, then chunks of waiting prompts. Decodes are never left out for a prompt.
//
// Where the paper is silent:
//  * All decodes run even when they alone exceed the budget; prompts then get nothing.
//  * A prompt starts when blocks for all of it are free beside what running tasks append next.
//  * When running tasks lack blocks, the youngest is dropped until the others fit. It waits at the
//    front of the queue, and nobody is admitted in that step.
//  * A prompt that cannot be cut runs whole as the first of its step, beyond the budget if it must,
//    and waits while the decodes leave the engine's step too little room.
#include <algorithm>

#include "policy/policies.h"
#include "policy/roster.h"

namespace slicellm {
namespace {

class Sarathi : public RosterPolicy {
 public:
  explicit Sarathi(const Parameters& p)
      : RosterPolicy(Roster::Preemption::youngest_to_front),
        token_budget_(p.integer("token_budget", 1, 1 << 30)),
        max_batch_(p.integer("max_batch", 1, 1 << 20)),
        shortest_first_(p.choice("order", {"fcfs", "spf"}) == "spf") {}

  std::string name() const override { return "sarathi"; }

  void on(const TaskEvent& event, const View& view) override {
    if (event.kind == TaskEventKind::finish) return roster_.finish(event.slot);
    const int32_t length = view.tasks[event.slot].prompt_len;
    roster_.arrive(event.slot, shortest_first_ ? length : 0, view);
  }

  StepPlan plan(const View& view) override {
    const Roster::Kept kept = roster_.keep(view);
    StepBuilder step(view, max_batch_, std::max(0, token_budget_ - kept.decodes));
    roster_.reject_impossible(step);
    for (int32_t slot : kept.dropped) step.drop(slot);
    for (int32_t slot : kept.running) {
      if (view.tasks[slot].ready_to_decode()) step.decode(slot);
    }
    for (int32_t slot : kept.running) {
      if (!view.tasks[slot].ready_to_decode()) step.prefill(slot, step.chunk(slot));
    }
    if (kept.dropped.empty()) {
      roster_.admit(step, max_batch_, kept.spare_blocks, &StepBuilder::chunk);
    }
    return step.take();
  }

 private:
  const int32_t token_budget_, max_batch_;
  const bool shortest_first_;
};

}  // namespace

PolicyInfo sarathi_info() {
  return {"sarathi",
          "Agrawal et al., Sarathi-Serve, OSDI'24, section 4",
          "Fills a token budget with all decodes, then with chunks of prompts.",
          {{"token_budget", "512", "tokens in one step"},
           {"max_batch", "128", "tasks that may run at once"},
           {"order", "fcfs", "waiting prompts: fcfs, or spf: shortest first"}}};
}

std::unique_ptr<Policy> make_sarathi(const Parameters& parameters) {
  return std::make_unique<Sarathi>(parameters);
}

}  // namespace slicellm
