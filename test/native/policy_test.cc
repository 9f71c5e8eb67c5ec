// Every policy on random tasks and small machines, natively, so that sanitizers see them: plans are
// legal and the same when asked for twice, blocks add up, and every task ends.
#include <random>
#include <string>

#include "check.h"
#include "policy_table.h"

namespace {

using namespace slicellm;
using test::PolicyTable;

constexpr int32_t kSlots = 24;

TaskView random_task(std::mt19937& random, bool divisible) {
  const auto pick = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  TaskView task;
  task.class_id = pick(0, 2);
  task.utility = pick(0, 3) ? 1 : 100;
  if (pick(0, 2)) task.slo.tpot = 0.01 * pick(1, 30);
  if (pick(0, 2)) task.slo.deadline = 0.1 * pick(1, 30);
  task.prompt_len = pick(1, 60);
  task.max_tokens = pick(1, 40);
  task.prefill_divisible = divisible;
  return task;
}

void run(const std::string& text, uint32_t seed) {
  std::mt19937 random(seed);
  const auto pick = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  const auto policy = make_policy(text);
  // 99 tokens of KV, the most that a task can need, are 7 blocks.
  const int32_t device = pick(7, 40), host = pick(0, 2) * 10, rows = pick(1, 8);
  PolicyTable table(kSlots, device, host, rows, pick(8, 128), pick(0, 1) * pick(1, 3));
  PlanChecker checker;
  StepOutcome outcome;
  const bool divisible = pick(0, 1);

  int arrivals = 60, steps = 0;
  while ((arrivals > 0 || !table.live().empty()) && ++steps < 20000) {
    for (int32_t slot = 0; slot < kSlots && arrivals > 0; ++slot) {
      if (table.task(slot).id >= 0 || pick(0, 9)) continue;
      table.arrive(slot, random_task(random, divisible), *policy);
      --arrivals;
    }
    if (table.live().empty()) continue;
    if (pick(0, 29) == 0) {
      const int32_t slot = table.live()[pick(0, static_cast<int>(table.live().size()) - 1)];
      table.finish(slot, FinishReason::cancelled, *policy);
      if (table.live().empty()) continue;
    }
    const StepPlan plan = policy->plan(table.view());
    checker.check(plan, table.view());
    CHECK(policy->plan(table.view()) == plan);
    table.apply(plan, outcome);
    policy->commit(plan, outcome, table.view());
    for (const Ending& ending : plan.endings) table.finish(ending.slot, ending.reason, *policy);
    for (int32_t slot : outcome.token_slots) {
      const TaskView& task = table.task(slot);
      const bool ends = task.produced >= task.max_tokens || pick(0, 19) == 0;
      if (ends) table.finish(slot, FinishReason::stop, *policy);
    }
    CHECK(table.view().free_blocks >= 0 && table.view().free_host_blocks >= 0);
    CHECK(!policy->inspect().empty());
  }
  CHECK_MESSAGE(table.live().empty(), text + ": tasks are left, seed " + std::to_string(seed));
}

// Two tasks that share most of what they hold stand at a block's end on a full device; a third on
// the full host is ahead of them. To evict both frees less than the third needs.
void fastserve_with_a_shared_prefix() {
  const auto policy = make_policy("fastserve:max_batch=4");
  PolicyTable table(5, 20, 9, 8, 512, 12);
  TaskView task;
  task.max_tokens = 60;
  const auto begin = [&](int32_t slot, int32_t tokens) {  // its prompt and the first two tokens
    task.prompt_len = tokens - 1;
    table.arrive(slot, task, *policy);
    StepOutcome outcome;
    StepPlan prompt, decode;
    prompt.prefill.push_back({slot, tokens - 1});
    decode.decode.push_back(slot);
    table.apply(prompt, outcome);
    table.apply(decode, outcome);
  };
  begin(1, 144);  // 9 blocks
  StepPlan away;
  away.kv.push_back({KvActionKind::swap_out, 1});
  StepOutcome outcome;
  table.apply(away, outcome);
  begin(0, 256);  // 16 blocks each, of which 12 are the same
  begin(2, 256);
  CHECK(table.view().free_blocks == 0 && table.view().free_host_blocks == 0);
  PlanChecker checker;
  const StepPlan plan = policy->plan(table.view());
  checker.check(plan, table.view());
  CHECK(!plan.empty());
}

void a_task_that_has_left_is_in_no_plan() {
  PolicyTable table(1, 20, 0, 8, 512);
  TaskView task;
  task.id = 1;
  task.prompt_len = 3;
  task.max_tokens = 5;
  std::vector<TaskView> rows{task};
  View view = table.view();
  view.tasks = rows;
  StepPlan plan;
  plan.prefill.push_back({0, 3});
  PlanChecker checker;
  checker.check(plan, view);
  rows[0].ended = FinishReason::cancelled;
  CHECK(test::throws(ErrorKind::state, "plan.prefill[0]", [&] { checker.check(plan, view); }));
}

}  // namespace

int main() {
  a_task_that_has_left_is_in_no_plan();
  fastserve_with_a_shared_prefix();
  for (const PolicyInfo& info : list_policies()) {
    for (uint32_t seed = 0; seed < 40; ++seed) run(info.name, seed);
  }
  for (uint32_t seed = 0; seed < 40; ++seed) {
    run("slice:mask_layout=spread,boost_after_ms=200,age_after_ms=500", seed);
    run("fastserve:max_batch=3,starvation_steps=20,starvation_ms=200", seed);
    run("static:batch=4", seed);
    run("scls:slice=5,gamma_ms=40", seed);
    run("sarathi:token_budget=16,order=spf", seed);
    run("vllm:max_num_batched_tokens=40,order=priority", seed);
    run("slai:token_budget=16,variant=spf_dynamic_user_priority", seed);
    run("rad-like:tile=4,token_budget=24", seed);
    run("priority-pause:max_batch=4,max_pause_steps=3,order=fcfs", seed);
  }
  return test::check_result();
}
