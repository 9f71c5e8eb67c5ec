// rad-like: inspired by RAD, the theory policy of arXiv 2508.01002, whose text we could not get.
// This is NOT the published policy: we know only that it splits a step between prefill and decode
// at the tiles of matrix products and is optimal in throughput. Do not quote it as RAD.
//
// A matrix product over T tokens costs as much as over the next multiple of the tile. So:
//  * While prompts are to be computed, the step is all decodes plus as many prompt tokens as make
//    the total the multiple of the tile that the latency model expects to give most tokens a second
//    (up to token_budget). The last step of a short backlog stays below its multiple.
//  * Without prompts, all decodes run or, where that gives more tokens a second, as many as fill
//    whole tiles, those first whose last token is oldest.
// Prompts start first come first served. KV and prompts that cannot be cut as in sarathi.
#include <algorithm>

#include "policy/policies.h"
#include "policy/roster.h"

namespace slicellm {
namespace {

class RadLike : public RosterPolicy {
 public:
  explicit RadLike(const Parameters& p)
      : RosterPolicy(Roster::Preemption::youngest_to_front),
        tile_(p.integer("tile", 1, 1 << 20)),
        token_budget_(p.integer("token_budget", 1, 1 << 30)),
        max_batch_(p.integer("max_batch", 1, 1 << 20)) {}

  std::string name() const override { return "rad-like"; }

  void on(const TaskEvent& event, const View& view) override {
    if (event.kind == TaskEventKind::finish) return roster_.finish(event.slot);
    roster_.arrive(event.slot, 0, view);
  }

  StepPlan plan(const View& view) override;

 private:
  // Tokens a second of a step with so many decodes and prompt tokens, as far as can be told before
  // the prompts are known.
  static double rate(int32_t decodes, int32_t prompt, double mean_context, const View& view) {
    const double seconds = view.latency
                               ->predict({.tokens = decodes + prompt,
                                          .rows = decodes,
                                          .context = decodes * mean_context,
                                          .chunk_work = 0.5 * prompt * prompt,
                                          .prefill_tokens = prompt})
                               .median;
    return (decodes + prompt) / seconds;
  }

  // How many prompt tokens to put beside `decodes`.
  int32_t prompt_tokens(int32_t decodes, double mean_context, const View& view) const {
    const int32_t budget = std::min(token_budget_, view.max_step_tokens);
    int32_t best = std::max(0, budget - decodes);  // where no whole tile is left
    double best_rate = 0;
    for (int64_t total = (decodes / tile_ + int64_t{1}) * tile_; total <= budget; total += tile_) {
      const auto prompt = static_cast<int32_t>(total - decodes);
      const double tokens_a_second = rate(decodes, prompt, mean_context, view);
      if (tokens_a_second < best_rate) continue;
      best = prompt;
      best_rate = tokens_a_second;
    }
    return best;
  }

  const int32_t tile_, token_budget_, max_batch_;
};

StepPlan RadLike::plan(const View& view) {
  const Roster::Kept kept = roster_.keep(view);
  std::vector<Ranked> decodes;  // oldest last token first
  double context = 0;
  for (int32_t slot : kept.running) {
    const TaskView& task = view.tasks[slot];
    if (!task.ready_to_decode()) continue;
    decodes.push_back({task.last_token_time, task.arrival, task.id, slot});
    context += task.cached;
  }
  std::sort(decodes.begin(), decodes.end());
  const double mean_context = context / std::max<size_t>(1, decodes.size());
  const auto start = [&](int32_t count, int32_t prompt) {
    StepBuilder step(view, max_batch_, prompt);
    roster_.reject_impossible(step);
    for (int32_t slot : kept.dropped) step.drop(slot);
    for (int32_t i = 0; i < count; ++i) step.decode(decodes[i].slot);
    return step;
  };

  const auto all = static_cast<int32_t>(decodes.size());
  StepBuilder step = start(all, prompt_tokens(all, mean_context, view));
  for (int32_t slot : kept.running) {
    if (!view.tasks[slot].ready_to_decode()) step.prefill(slot, step.chunk(slot));
  }
  if (kept.dropped.empty()) {
    roster_.admit(step, max_batch_, kept.spare_blocks, &StepBuilder::chunk);
  }
  if (!step.plan().prefill.empty()) return step.take();

  const int32_t tiled = all / tile_ * tile_;
  const bool leave_out =
      tiled > 0 && rate(tiled, 0, mean_context, view) > rate(all, 0, mean_context, view);
  return leave_out ? start(tiled, 0).take() : step.take();
}

}  // namespace

PolicyInfo rad_like_info() {
  return {"rad-like",
          "ours, after the idea of RAD in arXiv 2508.01002; not the published policy",
          "Fills whole tiles of tokens with decodes and prompt chunks, for throughput.",
          {{"tile", "64", "tokens in a tile of a matrix product"},
           {"token_budget", "512", "tokens in one step with prompts"},
           {"max_batch", "128", "tasks that may run at once"}}};
}

std::unique_ptr<Policy> make_rad_like(const Parameters& parameters) {
  return std::make_unique<RadLike>(parameters);
}

}  // namespace slicellm
