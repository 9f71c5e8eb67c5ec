// slai: SLO-aware scheduling on top of Sarathi-Serve (arXiv 2508.01002, section 5).
//
// A decode has a last schedulable time LST = end of its last step + TBT target - offset * (running
// mean step time). A step of 512 tokens takes (1) decodes whose LST has come, by LST; (2) chunks of
// started prompts; (3) chunks of waiting prompts, first come or shortest first, or strict users
// first and then shortest; (4) other decodes by LST. The offset is 10, or in the dynamic variants 5
// until 96 % of the KV blocks are in use.
//
// Where the paper is silent:
//  * The TBT target is the task's TPOT, or its deadline over max_tokens; a task with neither has no
//    LST and decodes in (4), after the others. Equal LST by arrival.
//  * The running mean is over all steps so far, and 0 before the first.
//  * Strict users are those with the smallest TBT target seen so far, live or not, so that an
//    absent strict class does not turn others strict; or with one of at most strict_tpot_ms.
//  * KV and prompts that cannot be cut as in sarathi.
#include <algorithm>

#include "policy/json.h"
#include "policy/policies.h"
#include "policy/roster.h"

namespace slicellm {
namespace {

constexpr double kOffset = 10, kRelaxedOffset = 5;  // mean step times before the target
constexpr double kFullKv = 0.96;                    // use from which the full offset holds
constexpr double kRelaxedRank = 1e9;                // above any prompt length

class Slai : public Policy {
 public:
  explicit Slai(const Parameters& p)
      : variant_(p.choice("variant",
                          {"fcfs_fixed", "spf_fixed", "spf_dynamic", "spf_dynamic_user_priority"})),
        token_budget_(p.integer("token_budget", 1, 1 << 30)),
        max_decodes_(p.integer("max_decodes", 1, 1 << 20)),
        max_batch_(p.integer("max_batch", 1, 1 << 20)),
        strict_tpot_(p.number("strict_tpot_ms", 0, 1e12) / 1e3) {}

  std::string name() const override { return "slai"; }

  void on(const TaskEvent& event, const View& view) override {
    if (event.kind == TaskEventKind::finish) return roster_.finish(event.slot);
    const double target = token_time(view.tasks[event.slot]).value_or(smallest_target_);
    if (target < smallest_target_) {
      smallest_target_ = target;
      if (by_user() && strict_tpot_ == 0) {
        roster_.rank_again([&](int32_t slot) { return rank(view.tasks[slot]); });
      }
    }
    roster_.arrive(event.slot, rank(view.tasks[event.slot]), view);
  }

  StepPlan plan(const View& view) override;

  void commit(const StepPlan& plan, const StepOutcome& outcome, const View&) override {
    roster_.commit(plan);
    if (plan.runs()) mean_step_ += (outcome.duration - mean_step_) / ++steps_;
  }

  std::string inspect() const override {
    return JsonObject()
        .add("running", roster_.running())
        .add("waiting", roster_.waiting())
        .add("mean_step_ms", mean_step_ * 1e3)
        .add("steps", steps_)
        .text();
  }

 private:
  bool by_user() const { return variant_ == "spf_dynamic_user_priority"; }

  // In the queue of waiting prompts.
  double rank(const TaskView& task) const {
    if (variant_ == "fcfs_fixed") return 0;
    const std::optional<double> target = token_time(task);
    const bool strict = target && *target <= (strict_tpot_ > 0 ? strict_tpot_ : smallest_target_);
    return task.prompt_len + (by_user() && !strict ? kRelaxedRank : 0);
  }

  double offset(const View& view) const {
    const bool dynamic = variant_ == "spf_dynamic" || by_user();
    const bool full = view.total_blocks - view.free_blocks >= kFullKv * view.total_blocks;
    return dynamic && !full ? kRelaxedOffset : kOffset;
  }

  const std::string variant_;
  const int32_t token_budget_, max_decodes_, max_batch_;
  const double strict_tpot_;  // seconds; 0: the smallest seen
  double smallest_target_ = std::numeric_limits<double>::infinity();
  Roster roster_{Roster::Preemption::youngest_to_front};
  double mean_step_ = 0;
  int64_t steps_ = 0;
};

StepPlan Slai::plan(const View& view) {
  const Roster::Kept kept = roster_.keep(view);
  const double lead = offset(view) * mean_step_;
  std::vector<Ranked> decodes;  // by LST
  for (int32_t slot : kept.running) {
    const TaskView& task = view.tasks[slot];
    if (!task.ready_to_decode()) continue;
    const double target = token_time(task).value_or(kBackRank);
    decodes.push_back({task.last_token_time + target - lead, task.arrival, task.id, slot});
  }
  std::sort(decodes.begin(), decodes.end());
  const size_t limit = std::min(
      {decodes.size(), static_cast<size_t>(max_decodes_), static_cast<size_t>(token_budget_)});
  decodes.resize(limit);
  const auto urgent = std::find_if(decodes.begin(), decodes.end(),
                                   [&](const Ranked& decode) { return view.now < decode.rank; });

  const auto urgent_tokens = static_cast<int32_t>(urgent - decodes.begin());
  StepBuilder step(view, max_batch_, token_budget_ - urgent_tokens);
  roster_.reject_impossible(step);
  for (int32_t slot : kept.dropped) step.drop(slot);
  for (auto it = decodes.begin(); it != urgent; ++it) step.decode(it->slot);
  for (int32_t slot : kept.running) {
    if (!view.tasks[slot].ready_to_decode()) step.prefill(slot, step.chunk(slot));
  }
  if (kept.dropped.empty()) {
    roster_.admit(step, max_batch_, kept.spare_blocks, &StepBuilder::chunk);
  }
  for (auto it = urgent; it != decodes.end(); ++it) {
    if (view.max_step_tokens - step.tokens_left() >= token_budget_) break;
    step.decode(it->slot);
  }
  return step.take();
}

}  // namespace

PolicyInfo slai_info() {
  return {
      "slai",
      "SLAI, arXiv 2508.01002, section 5",
      "Decodes wait until their last schedulable time, so that prompts start sooner.",
      {{"variant", "spf_dynamic",
        "fcfs_fixed, spf_fixed, spf_dynamic or spf_dynamic_user_priority"},
       {"token_budget", "512", "tokens in one step"},
       {"max_decodes", "128", "decodes in one step"},
       {"max_batch", "128", "tasks that may run at once"},
       {"strict_tpot_ms", "0", "the most that a strict user's TPOT may be; 0 = smallest seen"}}};
}

std::unique_ptr<Policy> make_slai(const Parameters& parameters) {
  return std::make_unique<Slai>(parameters);
}

}  // namespace slicellm
