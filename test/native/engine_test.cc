// The engine loop on a toy executor: times, reasons, event order. Time is virtual, so every
// expected number is worked out by hand: a step takes 10 ms + 1 ms a token.
#include <atomic>
#include <cmath>

#include "script_rig.h"

using namespace slicellm;
using test::ids, test::make_task, test::Rig, test::run_all, test::ScriptPolicy, test::throws;

namespace {

constexpr const char* kTwoTasks =
    "0 1 arrive 0\n"
    "0 1 admit 0\n"
    "13 1 prefill 3\n"
    "13 1 token 0\n"
    "5 2 arrive 0\n"  // during the first step; served after it
    "13 2 admit 0\n"
    "26 2 prefill 2\n"
    "26 2 token 0\n"
    "26 1 token 0\n"
    "26 1 finish 2\n"
    "37 2 token 0\n"
    "37 2 finish 2\n";

void test_two_tasks() {
  Rig rig;
  auto handles = rig.engine->submit_all({make_task({1, 2, 3}, 2), make_task({4, 5}, 2, 0.005)});
  CHECK(rig.engine->wait_idle(10));
  CHECK(rig.events() == kTwoTasks);
  const TaskResult first = handles[0]->wait(0), second = handles[1]->wait(0);
  CHECK(ids(first) == test::toy_output({1, 2, 3}, 2));
  CHECK(ids(second) == test::toy_output({4, 5}, 2));
  CHECK(second.arrival == 0.005 && second.prompt_tokens == 2);
  CHECK(std::abs(second.tokens[0].time - 0.026) < 1e-6);
  CHECK(first.reason == FinishReason::length && std::abs(first.finish_time - 0.026) < 1e-6);
  const std::vector<std::string> expected = {"arrive 1 none",  "commit 1",        "arrive 2 none",
                                             "commit 2",       "finish 1 length", "commit 1",
                                             "finish 2 length"};
  CHECK(rig.policy->log == expected);

  const std::vector<StepRecord> steps = rig.engine->drain_steps();
  CHECK(steps.size() == 3);
  CHECK(steps[1].decode_rows == 1 && steps[1].prefill_rows == 1 && steps[1].prefill_tokens == 2);
  CHECK(std::abs(steps[1].start - 0.013) < 1e-6 && std::abs(steps[1].duration - 0.013) < 1e-6);
  // The table says 10 ms a decode step, 10 ms + 1 ms a token for prefill.
  CHECK(std::abs(steps[1].predicted - 0.022) < 1e-9);
  CHECK(steps[1].plan_seconds >= 0 && steps[1].overhead_seconds >= 0);
  CHECK(rig.engine->drain_steps().empty() && rig.engine->drain_events().empty());
  const EngineStats stats = rig.engine->stats();
  CHECK(stats.steps == 3 && stats.submitted == 2 && stats.finished == 2 && stats.live == 0);
  CHECK(rig.engine->inspect_policy() == "{\"calls\":7}");
  CHECK(rig.engine->latency_json().find("\"table\"") != std::string::npos);
}

// The same tasks overlapped. The second step is planned at 0 ms, before the second task is there,
// which therefore joins the third, at 24 ms; and the first task leaves the policy as soon as the
// step that gives its last token is submitted.
void test_two_tasks_overlapped() {
  EngineOptions options;
  options.loop = LoopKind::overlap;
  Rig rig(run_all, options);
  auto handles = rig.engine->submit_all({make_task({1, 2, 3}, 2), make_task({4, 5}, 2, 0.005)});
  CHECK(rig.engine->wait_idle(10));
  CHECK(rig.events() ==
        "0 1 arrive 0\n0 1 admit 0\n13 1 prefill 3\n13 1 token 0\n5 2 arrive 0\n24 1 token 0\n"
        "24 2 admit 0\n24 1 finish 2\n36 2 prefill 2\n36 2 token 0\n47 2 token 0\n"
        "47 2 finish 2\n");
  CHECK(ids(handles[0]->wait(0)) == test::toy_output({1, 2, 3}, 2));
  CHECK(ids(handles[1]->wait(0)) == test::toy_output({4, 5}, 2));
  const std::vector<std::string> expected = {"arrive 1 none",   "commit 1",       "commit 1",
                                             "finish 1 length", "arrive 2 none",  "commit 1",
                                             "commit 1",        "finish 2 length"};
  CHECK(rig.policy->log == expected);
}

// A stop id is known only when its step has settled: the step ahead has a row for nobody, whose
// token is dropped, and what the policy was shown is put right.
void test_a_task_that_ended_runs_once_more() {
  EngineOptions options;
  options.loop = LoopKind::overlap;
  std::vector<double> now;
  std::vector<int32_t> produced;
  Rig rig(
      [&](const View& view) {
        const TaskView& task = view.tasks[view.live.front()];
        now.push_back(view.now);
        produced.push_back(task.produced);
        CHECK(task.produced == 0 || std::abs(task.last_token_time - view.now) < 1e-9);
        return run_all(view);
      },
      options);
  TaskSpec task = make_task({7, 9}, 6);
  task.stop_ids = {test::toy_output({7, 9}, 2)[1]};
  const TaskResult r = rig.engine->submit(task)->wait(10);
  CHECK(rig.engine->wait_idle(10));
  rig.engine->check_integrity();
  CHECK(r.reason == FinishReason::stop && ids(r) == test::toy_output({7, 9}, 2));
  CHECK(std::abs(r.finish_time - 0.023) < 1e-6);  // 12 ms and 11 ms
  // Steps 1 and 2 give the tokens, step 3 nothing. Plans see the predicted end of the step before:
  // 12 ms of the prompt, 10 ms of a decode step, which is one too few.
  CHECK((produced == std::vector<int32_t>{0, 1, 2}));
  CHECK(now.size() == 3 && now[0] == 0 && std::abs(now[1] - 0.012) < 1e-9 &&
        std::abs(now[2] - 0.022) < 1e-6);
  const std::vector<std::string> expected = {"arrive 1 none", "commit 1", "commit 1", "commit 1",
                                             "finish 1 stop"};
  CHECK(rig.policy->log == expected);
  const std::vector<StepRecord> steps = rig.engine->drain_steps();
  CHECK(steps.size() == 3 && steps[2].decode_rows == 1);
  CHECK(std::abs(steps[2].start - 0.023) < 1e-6 && std::abs(steps[1].predicted - 0.010) < 1e-9);
  CHECK(rig.executor->known_tasks() == 0);
}

void test_reasons(LoopKind loop) {
  const std::vector<int32_t> output = test::toy_output({7, 9}, 6);
  EngineOptions options;
  options.loop = loop;
  options.eos_ids = {output[2]};
  options.vocab = test::kToyVocab;
  for (int32_t id = 0; id < test::kToyVocab; ++id) {
    options.token_bytes.push_back(" " + std::to_string(id));
  }
  Rig rig(run_all, options);
  auto text = [&](size_t count) {
    std::string all;
    for (size_t i = 0; i < count; ++i) all += " " + std::to_string(output[i]);
    return all;
  };
  auto run = [&](TaskSpec task) { return rig.engine->submit(std::move(task))->wait(10); };

  TaskResult r = run(make_task({7, 9}, 6));
  CHECK(r.reason == FinishReason::stop && r.tokens.size() == 3 && r.text == text(2));

  TaskSpec task = make_task({7, 9}, 6);
  task.ignore_eos = true;
  r = run(task);
  CHECK(r.reason == FinishReason::length && r.tokens.size() == 6 && r.text == text(6));

  task.stop_ids = {output[3]};
  r = run(task);
  CHECK(r.reason == FinishReason::stop && r.tokens.size() == 4 && r.text == text(3));

  // A stop string over two tokens: held back, then cut; the token that completed it is reported.
  task.stop_ids.clear();
  task.stop = {std::to_string(output[1]).substr(1) + " " + std::to_string(output[2]).substr(0, 1)};
  r = run(task);
  CHECK(r.reason == FinishReason::stop && r.tokens.size() == 3);
  CHECK(r.text == text(1) + " " + std::to_string(output[1]).substr(0, 1));

  // A workload's task ends at its true length, not at the model's end of sequence.
  task = make_task({7, 9}, 6);
  task.true_output_tokens = 5;
  r = run(task);
  CHECK(r.reason == FinishReason::stop && r.tokens.size() == 5 && r.text == text(5));
  task.true_output_tokens = 9;
  CHECK(run(task).reason == FinishReason::length);

  rig.engine->check_integrity();
}

void test_deadline(LoopKind loop) {
  EngineOptions options;
  options.loop = loop;
  // While running: two tokens fit, the third would come at 13 + 11 + 11 = 35 ms.
  Rig rig(run_all, options);
  TaskSpec task = make_task({1, 2, 3}, 10);
  task.slo.deadline = 0.03;
  TaskResult r = rig.engine->submit(task)->wait(10);
  CHECK(r.reason == FinishReason::length && r.tokens.size() == 10);  // a target, not an end

  task.stop_at_deadline = true;
  const double start = rig.clock->now();
  r = rig.engine->submit(task)->wait(10);
  CHECK(r.reason == FinishReason::deadline && ids(r) == test::toy_output({1, 2, 3}, 2));
  CHECK(std::abs(r.finish_time - start - 0.035) < 1e-6);

  // While waiting: the policy lets it sleep beyond its deadline.
  Rig idle(
      [](const View& view) {
        StepPlan plan;
        plan.wake_at = view.now + 100;
        return plan;
      },
      options);
  r = idle.engine->submit(task)->wait(10);
  CHECK(r.reason == FinishReason::deadline && r.tokens.empty());
  CHECK(std::abs(r.finish_time - r.arrival - 0.03) < 1e-6);
  idle.engine->check_integrity();
}

void test_rejected() {
  EngineOptions options;
  options.max_context = 64;
  options.max_queue = 3;
  Rig rig(run_all, options, 8);  // room for 32 tokens
  TaskResult r = rig.engine->submit(make_task({1, 2}, 31))->wait(10);
  CHECK(r.reason == FinishReason::length && r.tokens.size() == 31);  // the last needs no KV
  r = rig.engine->submit(make_task({1, 2}, 32))->wait(10);
  CHECK(r.reason == FinishReason::rejected && r.tokens.empty());
  CHECK(r.error ==
        "prompt + max_tokens: got 34 tokens, expected at most what 8 KV blocks of 4 tokens hold");
  r = rig.engine->submit(make_task({1, 2}, 63))->wait(10);
  CHECK(r.error == "prompt + max_tokens: got 65 tokens, expected at most 64 (max_context)");
  const std::string events = rig.events();
  CHECK(events.find(" 2 arrive 0\n") != std::string::npos);
  CHECK(events.find(" 2 reject 5\n") != std::string::npos);
  CHECK(events.find(" 2 finish") == std::string::npos);

  // A full queue: the policy serves nobody until two tasks live and a third was refused.
  std::atomic<bool> serve{false};
  Rig full(
      [&](const View& view) {
        StepPlan plan = serve ? run_all(view) : StepPlan{};
        if (!serve) plan.wake_at = view.now + 100;
        return plan;
      },
      options, 8);
  const auto first_two = full.engine->submit_all({make_task({1}, 1), make_task({1}, 1)});
  CHECK(throws(ErrorKind::resource, "queue", [&] {
    full.engine->submit_all({make_task({1}, 1), make_task({1}, 1)});  // all or nothing
  }));
  serve = true;
  CHECK(full.engine->submit(make_task({1}, 1))->wait(10).reason == FinishReason::length);
  for (const auto& handle : first_two) CHECK(handle->wait(10).reason == FinishReason::length);

  options = {};
  options.prefill_divisible = false;
  options.max_rows = 4;
  options.max_step_tokens = 10;
  Rig whole(run_all, options);
  r = whole.engine->submit(make_task({1, 2, 3}, 9))->wait(10);
  CHECK(r.reason == FinishReason::rejected && r.error.find("max_step_tokens") != r.error.npos);
  CHECK(whole.engine->submit(make_task({1, 2, 3}, 8))->wait(10).tokens.size() == 8);
}

// One task through drop, swap out, swap in and recompute in chunks, with the log to show for it.
void test_preemption() {
  int step = 0;
  Rig rig([&step](const View& view) {
    StepPlan plan;
    const int32_t slot = view.live.front();
    const TaskView& task = view.tasks[slot];
    switch (step++) {
      case 0:
        plan.prefill = {{slot, 2}};
        break;
      case 1:
        plan.prefill = {{slot, 3}};
        break;  // first token
      case 2:
        plan.kv = {{KvActionKind::swap_out, slot}};
        break;
      case 3:
        CHECK(task.kv == KvState::host && task.blocks == 2 && task.cached == 5);
        CHECK(view.free_blocks == view.total_blocks &&
              view.free_host_blocks == view.total_host_blocks - 2);
        plan.wake_at = view.now + 1;
        break;
      case 4:
        plan.kv = {{KvActionKind::swap_in, slot}};
        plan.decode = {slot};  // second token
        break;
      case 5:
        plan.kv = {{KvActionKind::drop, slot}};
        break;
      case 6:
        CHECK(task.kv == KvState::none && task.cached == 0 && task.pending() == 7);
        CHECK(task.prompt_len == 5);
        plan.prefill = {{slot, 6}};
        break;
      case 7:
        CHECK(task.ready_to_decode());
        plan.decode = {slot};  // third and last token
        break;
    }
    return plan;
  });
  const TaskResult r = rig.engine->submit(make_task({1, 2, 3, 4, 5}, 3))->wait(10);
  CHECK(ids(r) == test::toy_output({1, 2, 3, 4, 5}, 3));
  CHECK(step == 8);
  // A step without tokens takes the 10 ms that the toy asks for; a drop alone needs no step.
  CHECK(rig.events() ==
        "0 1 arrive 0\n0 1 admit 0\n12 1 prefill 2\n25 1 prefill 3\n25 1 token 0\n"
        "25 1 swap_out 2\n1035 1 swap_in 2\n1035 1 resume 0\n1046 1 token 0\n"
        "1046 1 preempt 6\n1046 1 resume 0\n1062 1 prefill 6\n1073 1 token 0\n1073 1 finish 2\n");
  rig.engine->check_integrity();
}

void test_endings_of_the_policy() {
  Rig rig([](const View& view) {
    StepPlan plan;
    const int32_t slot = view.live.front();
    if (view.tasks[slot].produced < 2) {
      plan = run_all(view);
    } else {
      plan.endings = {{slot, FinishReason::rejected, "no time for it"}};
    }
    return plan;
  });
  const TaskResult r = rig.engine->submit(make_task({1, 2}, 9))->wait(10);
  CHECK(r.reason == FinishReason::rejected && r.error == "no time for it");
  CHECK(r.tokens.size() == 2);
  const std::vector<std::string> expected = {"arrive 1 none", "commit 1", "commit 1", "commit 0",
                                             "finish 1 rejected"};
  CHECK(rig.policy->log == expected);
  rig.engine->check_integrity();
}

// Classes keep their numbers; the live list is by arrival, however tasks come in.
void test_view() {
  std::vector<std::pair<double, int32_t>> seen;
  Rig rig([&seen](const View& view) {
    if (view.live.size() == 3 && seen.empty()) {
      for (int32_t slot : view.live) {
        seen.emplace_back(view.tasks[slot].arrival, view.tasks[slot].class_id);
      }
      CHECK(view.max_rows == 64 && view.block_tokens == 4 && view.latency != nullptr);
    }
    return run_all(view);
  });
  std::vector<TaskSpec> tasks = {make_task({1}, 40, 0.030), make_task({1}, 40, 0.010),
                                 make_task({1}, 40, 0.020)};
  tasks[0].class_name = tasks[2].class_name = "a";
  tasks[1].class_name = "b";
  rig.engine->submit_all(tasks);
  CHECK(rig.engine->wait_idle(10));
  CHECK(seen.size() == 3 && seen[0].first < seen[1].first && seen[1].first < seen[2].first);
  CHECK(seen[1].second == seen[2].second && seen[0].second != seen[1].second);
}

struct BatchRecorder : test::ToyExecutor {
  using ToyExecutor::ToyExecutor;
  Ticket submit(Batch batch) override {
    batches.push_back(batch);
    return ToyExecutor::submit(std::move(batch));
  }
  std::vector<Batch> batches;
};

// Padding reaches the executor as sequences of nobody on blocks of their own, and takes time; the
// task does not notice.
void test_padding() {
  auto executor = std::make_shared<BatchRecorder>(8, 0, 4);
  auto policy = std::make_unique<ScriptPolicy>([](const View& view) {
    StepPlan plan = run_all(view);
    if (plan.prefill.empty()) {
      CHECK(view.free_blocks == 7);  // the task has one; what padding had is back
      plan.padding.rows = {5};
    } else {
      plan.padding.prompts = {2};
    }
    return plan;
  });
  auto engine = Engine::make(executor, std::move(policy), test::toy_latency(), make_virtual_clock(),
                             EngineOptions());
  const auto handle = engine->submit(make_task({1, 2, 3}, 2));
  CHECK(engine->wait_idle(10));
  engine->check_integrity();
  const TaskResult result = handle->wait(0);
  CHECK(ids(result) == test::toy_output({1, 2, 3}, 2));
  CHECK(std::abs(result.tokens[0].time - 0.015) < 1e-6);  // five tokens, then two
  CHECK(std::abs(result.tokens[1].time - 0.027) < 1e-6);

  CHECK(executor->batches.size() == 2);
  for (const Batch& batch : executor->batches) {
    CHECK(batch.sequences.size() == 2 && batch.sequences[0].task == result.id);
    for (int32_t block : batch.sequences[1].blocks) {
      for (int32_t of_task : batch.sequences[0].blocks) CHECK(block != of_task);
    }
  }
  const BatchSequence& pads = executor->batches[0].sequences[1];
  CHECK(pads.task == kNoTask && pads.begin == 3 && pads.count == 2 && pads.past == 0);
  CHECK(!pads.sample && pads.blocks.size() == 1);
  const BatchSequence& row = executor->batches[1].sequences[1];
  CHECK(row.task == kNoTask && row.begin == 1 && row.count == 1 && row.past == 5);
  CHECK(row.sample && row.prompt_len <= row.past && row.blocks.size() == 2);

  const std::vector<StepRecord> steps = engine->drain_steps();
  CHECK(steps.size() == 2 && steps[0].prefill_tokens == 3 && steps[0].padding_tokens == 2);
  CHECK(steps[0].prefill_rows == 1 && steps[0].padding_rows == 0);
  CHECK(steps[1].decode_rows == 1 && steps[1].padding_rows == 1 && steps[1].padding_tokens == 0);
  // The belief: 10 ms and 1 ms a prompt token; 10 ms a decode step of any rows.
  CHECK(std::abs(steps[0].predicted - 0.015) < 1e-9 && std::abs(steps[1].predicted - 0.010) < 1e-9);
}

}  // namespace

int main() {
  test_two_tasks();
  test_padding();
  for (LoopKind loop : {LoopKind::plain, LoopKind::overlap}) {
    test_reasons(loop);
    test_deadline(loop);
  }
  test_two_tasks_overlapped();
  test_a_task_that_ended_runs_once_more();
  test_rejected();
  test_preemption();
  test_endings_of_the_policy();
  test_view();
  return test::check_result();
}
