// vllm: the classic scheduler of vLLM (Kwon et al., SOSP'23, section 4.5, and its default settings
// before chunked prefill). When anything can be admitted, a step of whole prompts only, up to
// max_num_batched_tokens; else one token for every running task.
//
// Where the sources are silent, or where we differ:
//  * order=priority: the higher utility comes first, then the earlier arrival (vLLM sorts by a
//    number of the request, lower first). The last in that order is preempted, and waits in its
//    place; in order=fcfs the youngest, which waits at the front. Preemption is recompute.
//  * The watermark is not kept for a task that would run alone: it may need every block.
//  * A prompt longer than max_num_batched_tokens (vLLM refuses it) is cut, and its chunks are the
//    first in steps of prompts; one that cannot be cut runs whole.
#include "policy/policies.h"
#include "policy/roster.h"

namespace slicellm {
namespace {

class Vllm : public RosterPolicy {
 public:
  explicit Vllm(const Parameters& p)
      : Vllm(p, p.choice("order", {"fcfs", "priority"}) == "priority") {}

  std::string name() const override { return "vllm"; }

  void on(const TaskEvent& event, const View& view) override {
    if (event.kind == TaskEventKind::finish) return roster_.finish(event.slot);
    const double utility = view.tasks[event.slot].utility;
    roster_.arrive(event.slot, by_priority_ ? -utility : 0, view);
  }

  StepPlan plan(const View& view) override {
    StepBuilder step(view, max_tasks_, max_tokens_);
    roster_.reject_impossible(step);
    int64_t spare = view.free_blocks - static_cast<int64_t>(watermark_ * view.total_blocks);
    for (int32_t slot : roster_.running()) {  // a prompt longer than a step
      if (view.tasks[slot].ready_to_decode()) continue;
      spare -= step.growth(slot, view.tasks[slot].pending());
      step.prefill(slot, step.whole_prefill(slot));
    }
    roster_.admit(step, max_tasks_, spare, &StepBuilder::whole_prefill);
    if (!step.plan().prefill.empty()) return step.take();

    const Roster::Kept kept = roster_.keep(view);
    for (int32_t slot : kept.dropped) step.drop(slot);
    for (int32_t slot : kept.running) step.decode(slot);
    return step.take();
  }

 private:
  Vllm(const Parameters& p, bool by_priority)
      : RosterPolicy(by_priority ? Roster::Preemption::last_rank
                                 : Roster::Preemption::youngest_to_front),
        max_tokens_(p.integer("max_num_batched_tokens", 1, 1 << 30)),
        max_tasks_(p.integer("max_num_seqs", 1, 1 << 20)),
        watermark_(p.number("watermark", 0, 1)),
        by_priority_(by_priority) {}

  const int32_t max_tokens_, max_tasks_;
  const double watermark_;
  const bool by_priority_;
};

}  // namespace

PolicyInfo vllm_info() {
  return {"vllm",
          "Kwon et al., PagedAttention, SOSP'23, section 4.5; vLLM before chunked prefill",
          "Steps of whole prompts while tasks can be admitted, else all decodes.",
          {{"max_num_batched_tokens", "2048", "prompt tokens in one step"},
           {"max_num_seqs", "256", "tasks that may run at once"},
           {"watermark", "0.01", "share of KV blocks that admission keeps free"},
           {"order", "fcfs", "fcfs, or priority: the higher utility first"}}};
}

std::unique_ptr<Policy> make_vllm(const Parameters& parameters) {
  return std::make_unique<Vllm>(parameters);
}

}  // namespace slicellm
