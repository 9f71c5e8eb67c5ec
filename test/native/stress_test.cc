// Eight threads submit, stream, cancel, look and wait at the same time; meant to be run under the
// thread and address sanitizers too. Nothing may be lost: every task ends once, with the tokens of
// its run alone.
#include <chrono>
#include <cstdlib>
#include <mutex>
#include <random>
#include <thread>

#include "check.h"
#include "toy_engine.h"

using namespace slicellm;

namespace {

struct Counts {
  std::atomic<int> ended{0}, cancelled{0}, streamed{0}, updates{0};
};

TaskSpec random_task(std::mt19937_64& rng, double now) {
  auto pick = [&rng](int low, int high) {
    return low + static_cast<int>(rng() % static_cast<uint64_t>(high - low + 1));
  };
  TaskSpec task;
  for (int n = pick(1, 30); n > 0; --n) task.prompt.push_back(pick(0, test::kToyVocab - 1));
  task.max_tokens = pick(1, 20);
  task.class_name = "class " + std::to_string(pick(0, 5));
  if (pick(0, 3) == 0) task.arrival = now + pick(0, 20) * 1e-3;
  return task;
}

// `news` must be the output from the `taken`-th token on.
void check_part(const TaskResult& news, const std::vector<int32_t>& whole, size_t& taken) {
  for (const Token& token : news.tokens) {
    CHECK(taken < whole.size() && token.id == whole[taken]);
    ++taken;
  }
}

void check_end(FinishReason reason, size_t taken, size_t whole, Counts& counts) {
  ++counts.ended;
  if (reason == FinishReason::cancelled) {
    ++counts.cancelled;
    return;
  }
  CHECK(reason == FinishReason::length && taken == whole);
}

void client(Engine& engine, int number, int tasks, Counts& counts) {
  std::mt19937_64 rng(static_cast<uint64_t>(number));
  std::vector<std::shared_ptr<TaskHandle>> open;
  std::vector<std::vector<int32_t>> outputs;
  for (int i = 0; i < tasks; ++i) {
    TaskSpec task = random_task(rng, engine.now());
    const std::vector<int32_t> output = test::toy_output(task.prompt, task.max_tokens);
    auto handle = engine.submit(std::move(task));
    handle->on_update([&counts] { ++counts.updates; });
    switch (rng() % 4) {
      case 0: {  // stream it, perhaps cancel in the middle
        size_t taken = 0;
        const size_t cancel_after = rng() % 3 == 0 ? rng() % 10 : 1000;
        for (;;) {
          const TaskResult news = handle->take(0.05);
          check_part(news, output, taken);
          if (news.reason != FinishReason::none) {
            check_end(news.reason, taken, output.size(), counts);
            break;
          }
          if (taken >= cancel_after) engine.cancel(handle->id());
        }
        ++counts.streamed;
        handle->on_update(nullptr);
        break;
      }
      case 1:  // cancel at once, from this thread
        engine.cancel(handle->id());
        [[fallthrough]];
      default:
        open.push_back(std::move(handle));
        outputs.push_back(output);
    }
    if (rng() % 16 == 0) CHECK(engine.stats().submitted > 0);
  }
  for (size_t i = 0; i < open.size(); ++i) {
    const TaskResult result = open[i]->wait(60);
    size_t taken = 0;
    check_part(result, outputs[i], taken);
    check_end(result.reason, taken, outputs[i].size(), counts);
  }
}

void run(uint64_t seed, LoopKind loop, int threads, int tasks) {
  auto executor = std::make_shared<test::ToyExecutor>(80, 40, 4);
  EngineOptions options;
  options.loop = loop;
  options.max_rows = 16;
  options.max_step_tokens = 64;
  auto engine = Engine::make(executor, std::make_unique<test::RandomPolicy>(seed, 0.2, 0.02),
                             test::toy_latency(), make_steady_clock(), options);
  Counts counts;
  std::atomic<bool> stop{false};
  size_t finishes = 0;
  std::thread watcher([&] {
    while (!stop) {
      for (const LogEvent& e : engine->drain_events()) finishes += e.kind == EventKind::finish;
      engine->drain_steps();
      engine->inspect_policy();
      engine->latency_json();
      engine->check_integrity();
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  });
  std::vector<std::thread> clients;
  for (int i = 0; i < threads; ++i) {
    clients.emplace_back(
        [&, i] { client(*engine, static_cast<int>(seed) * 100 + i, tasks, counts); });
  }
  for (std::thread& thread : clients) thread.join();
  CHECK(engine->wait_idle(60));
  stop = true;
  watcher.join();
  for (const LogEvent& e : engine->drain_events()) finishes += e.kind == EventKind::finish;
  engine->check_integrity();
  CHECK(executor->known_tasks() == 0);
  const EngineStats stats = engine->stats();
  const int all = threads * tasks;
  CHECK(counts.ended == all && stats.submitted == all && stats.finished == all);
  CHECK(finishes == static_cast<size_t>(all));
  CHECK(stats.free_blocks == 80 && stats.free_host_blocks == 40 && stats.live == 0);
  CHECK(counts.streamed > 0 && counts.cancelled > 0 && counts.updates >= all);
}

// Clients that are still at it when the engine is closed, or dies: all of them get an answer.
void run_to_an_end(uint64_t seed, LoopKind loop, bool dies) {
  auto executor = std::make_shared<test::ToyExecutor>(80, 40, 4);
  if (dies) executor->fail_at = 200;
  EngineOptions options;
  options.loop = loop;
  auto engine = Engine::make(executor, std::make_unique<test::RandomPolicy>(seed),
                             test::toy_latency(), make_steady_clock(), options);
  std::atomic<int> answered{0}, submitted{0};
  std::vector<std::thread> clients;
  for (int i = 0; i < 4; ++i) {
    clients.emplace_back([&, i] {
      std::mt19937_64 rng(static_cast<uint64_t>(i));
      std::vector<std::shared_ptr<TaskHandle>> handles;
      try {
        for (;;) {
          handles.push_back(engine->submit(random_task(rng, engine->now())));
          ++submitted;
          if (handles.size() % 8 == 0) handles.back()->wait(60);
        }
      } catch (const Error& e) {
        CHECK(e.kind() == ErrorKind::state);
      }
      for (const auto& handle : handles) answered += handle->wait(60).reason != FinishReason::none;
    });
  }
  if (!dies) {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    engine->close();
  }
  for (std::thread& thread : clients) thread.join();
  CHECK(answered == submitted && submitted > 0);
}

}  // namespace

int main(int argc, char** argv) {
  const int tasks = argc > 1 ? std::atoi(argv[1]) : 250;  // of each of 8 threads
  run(1, LoopKind::plain, 8, tasks);
  run(2, LoopKind::plain, 3, tasks);
  run(5, LoopKind::overlap, 8, tasks);
  for (LoopKind loop : {LoopKind::plain, LoopKind::overlap}) {
    run_to_an_end(3, loop, false);
    run_to_an_end(4, loop, true);
  }
  return test::check_result();
}
