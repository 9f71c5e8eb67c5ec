// What ends an engine's tasks from outside, on a toy executor: cancelling, faults of the policy and
// of the executor, closing, and options and tasks that are refused.
#include <atomic>
#include <mutex>
#include <stdexcept>
#include <thread>

#include "script_rig.h"

using namespace slicellm;
using test::ids, test::make_task, test::Rig, test::run_all, test::ScriptPolicy, test::throws;

namespace {

// Cancelling a task in each state that it can be in gives back what it holds.
void test_cancel() {
  std::mutex mutex;  // held while the test looks; the policy waits for it
  std::atomic<int> mode{0};
  Rig rig([&](const View& view) {
    std::lock_guard lock(mutex);
    StepPlan plan;
    const int32_t slot = view.live.front();
    const TaskView& task = view.tasks[slot];
    if (mode == 1 && task.kv == KvState::none) plan.prefill = {{slot, 2}};
    if (mode == 2 && task.kv == KvState::none) plan.prefill = {{slot, task.pending()}};
    if (mode == 2 && task.kv == KvState::device) plan.kv = {{KvActionKind::swap_out, slot}};
    if (plan.empty()) plan.wake_at = view.now + 1e-3;
    return plan;
  });
  auto cancel = [&](int how, KvState expected, double arrival) {
    mode = how;
    auto handle = rig.engine->submit(make_task({1, 2, 3, 4, 5}, 9, arrival));
    for (int i = 0; i < 10000; ++i) {
      const EngineStats stats = rig.engine->stats();
      const bool device = stats.free_blocks < stats.total_blocks;
      const bool host = stats.free_host_blocks < stats.total_host_blocks;
      if (expected == KvState::none || (expected == KvState::host ? host : device)) break;
      std::this_thread::yield();
    }
    CHECK(rig.engine->cancel(handle->id()));
    const TaskResult r = handle->wait(10);
    CHECK(r.reason == FinishReason::cancelled && handle->done());
    CHECK(!rig.engine->cancel(handle->id()));
    rig.engine->check_integrity();
    const EngineStats stats = rig.engine->stats();
    CHECK(stats.live == 0 && stats.free_blocks == 32 && stats.free_host_blocks == 16);
  };
  cancel(0, KvState::none, 0);    // waiting
  cancel(1, KvState::device, 0);  // in the middle of its prefill
  cancel(2, KvState::host, 0);    // swapped out
  CHECK(!rig.engine->cancel(12345));
  CHECK(rig.engine->wait_idle(0));

  // Before it arrives. Real time, or the idle clock would jump to the arrival.
  auto engine = Engine::make(rig.executor, std::make_unique<ScriptPolicy>(run_all),
                             test::toy_latency(), make_steady_clock(), {});
  auto handle = engine->submit(make_task({1}, 1, 1000.0));
  CHECK(!engine->wait_idle(0.01));
  CHECK(throws(ErrorKind::state, "task 1", [&] { handle->wait(0.01); }));
  CHECK(handle->take(0).reason == FinishReason::none);
  CHECK(engine->cancel(handle->id()));
  CHECK(handle->wait(10).reason == FinishReason::cancelled);
  CHECK(engine->wait_idle(10));
}

void expect_death(Rig& rig, const std::string& sentence) {
  auto a = rig.engine->submit(make_task({1, 2, 3}, 50));
  std::shared_ptr<TaskHandle> b;
  try {
    b = rig.engine->submit(make_task({4}, 50, 1e6));  // scheduled far ahead
  } catch (const Error&) {                            // the engine was quick
  }
  for (const auto& handle : {a, b}) {
    if (!handle) continue;
    const TaskResult r = handle->wait(10);
    CHECK(r.reason == FinishReason::error);
    CHECK_MESSAGE(r.error.find(sentence) != r.error.npos, r.error);
  }
  CHECK(throws(ErrorKind::state, "engine", [&] { rig.engine->submit(make_task({1}, 1)); }));
  CHECK(throws(ErrorKind::state, "engine", [&] { rig.engine->wait_idle(10); }));
  CHECK(throws(ErrorKind::state, "engine", [&] { rig.engine->inspect_policy(); }));
  CHECK(throws(ErrorKind::state, "engine", [&] { rig.engine->check_integrity(); }));
  CHECK(!rig.engine->cancel(a->id()));
  CHECK(rig.engine->stats().live == 0);
  CHECK(rig.engine->stats().free_blocks == rig.engine->stats().total_blocks);
  CHECK(rig.events().find(" 1 finish 6\n") != std::string::npos);
  rig.engine->close();
}

void test_faults(LoopKind loop) {
  EngineOptions options;
  options.loop = loop;
  {
    Rig rig(
        [](const View& view) -> StepPlan {
          if (view.now > 0.05) throw std::runtime_error("the policy's own words");
          return run_all(view);
        },
        options);
    expect_death(rig, "the policy's own words");
  }
  {
    Rig rig(run_all, options);
    rig.executor->fail_at = 3;
    expect_death(rig, "toy memory: got none, expected some");
  }
  {
    Rig rig(
        [](const View& view) {
          StepPlan plan = run_all(view);
          plan.decode.push_back(77);
          return plan;
        },
        options);
    expect_death(rig, "slot 77");
  }
  {
    Rig rig([](const View&) { return StepPlan(); }, options);  // would wait for ever
    expect_death(rig, "wake_at");
  }
  {  // broken logits end their task only
    Rig rig(run_all, options);
    rig.executor->invalid_token = test::toy_output({5, 6}, 3)[2];
    auto broken = rig.engine->submit(make_task({5, 6}, 9));
    auto sound = rig.engine->submit(make_task({1, 2}, 9));
    const TaskResult r = broken->wait(10);
    CHECK(r.reason == FinishReason::error && r.tokens.size() == 2);
    CHECK(r.error == "logits: got NaN or infinity, expected finite numbers");
    CHECK(sound->wait(10).reason == FinishReason::length);
    rig.engine->check_integrity();
  }
}

void test_close() {
  Rig rig([](const View& view) {
    StepPlan plan;
    plan.wake_at = view.now + 1e-3;
    return plan;
  });
  auto handle = rig.engine->submit(make_task({1}, 1));
  rig.engine->close();
  rig.engine->close();
  CHECK(handle->wait(0).reason == FinishReason::cancelled);
  CHECK(throws(ErrorKind::state, "engine", [&] { rig.engine->submit(make_task({1}, 1)); }));
  CHECK(throws(ErrorKind::state, "engine", [&] { rig.engine->inspect_policy(); }));
  rig.engine.reset();
  CHECK(handle->take(0).reason == FinishReason::cancelled);  // a handle outlives its engine
}

void test_border() {
  EngineOptions options;
  options.vocab = 10;
  Rig rig(run_all, options);
  CHECK(throws(ErrorKind::invalid_argument, "prompt", [&] {
    rig.engine->submit(make_task({1, 10}, 1));
  }));
  CHECK(throws(ErrorKind::invalid_argument, "max_tokens",
               [&] { rig.engine->submit(make_task({1}, 0)); }));
  CHECK(rig.engine->stats().submitted == 0);
  auto bad = [](const char* field, auto change) {
    EngineOptions o;
    change(o);
    CHECK(throws(ErrorKind::invalid_argument, field, [&] { Rig r(run_all, o); }));
  };
  bad("max_rows", [](EngineOptions& o) { o.max_rows = 0; });
  bad("max_step_tokens", [](EngineOptions& o) { o.max_step_tokens = o.max_rows - 1; });
  bad("max_context", [](EngineOptions& o) { o.max_context = -1; });
  bad("max_queue", [](EngineOptions& o) { o.max_queue = 0; });
  CHECK(throws(ErrorKind::invalid_argument, "engine",
               [] { Engine::make(nullptr, nullptr, nullptr, nullptr, {}); }));
}

}  // namespace

int main() {
  test_cancel();
  test_faults(LoopKind::plain);
  test_faults(LoopKind::overlap);
  test_close();
  test_border();
  return test::check_result();
}
