// 10,000 random tasks under random schedules, half of them by an overlapped loop: every task's
// tokens are those of its run alone, no KV block and no executor task is left behind.
#include <cstdlib>
#include <random>

#include "check.h"
#include "toy_engine.h"

using namespace slicellm;

namespace {

struct Expected {
  std::vector<int32_t> output;
  bool has_true_length = false;
  bool may_be_cancelled = false;
};

void run(uint64_t seed, int count, bool divisible, LoopKind loop) {
  std::mt19937_64 rng(seed);
  auto pick = [&rng](int low, int high) {
    return low + static_cast<int>(rng() % static_cast<uint64_t>(high - low + 1));
  };
  auto executor = std::make_shared<test::ToyExecutor>(pick(12, 60), pick(0, 40), pick(1, 8));
  auto clock = make_virtual_clock();
  EngineOptions options;
  options.max_rows = pick(1, 16);
  options.max_step_tokens = std::max(pick(8, 64), options.max_rows);
  options.prefill_divisible = divisible;
  options.loop = loop;
  options.vocab = test::kToyVocab;
  auto engine = Engine::make(executor, std::make_unique<test::RandomPolicy>(seed, 0.3, 0.03),
                             test::toy_latency(), clock, options);
  const int32_t room = executor->num_blocks() * executor->kv_layout().block_tokens;

  std::vector<TaskSpec> tasks;
  std::vector<Expected> expected;
  for (int i = 0; i < count; ++i) {
    TaskSpec task;
    for (int n = pick(1, 20); n > 0; --n) task.prompt.push_back(pick(0, test::kToyVocab - 1));
    task.max_tokens = pick(1, 12);
    if (pick(0, 4) == 0) task.true_output_tokens = pick(1, 12);
    task.arrival = pick(0, 1000) * 0.01 * count / 200;
    if (pick(0, 9) == 0) {
      task.slo.deadline = pick(1, 200) * 0.01;
      task.stop_at_deadline = true;
    }
    Expected e;
    e.has_true_length = task.true_output_tokens > 0 && task.true_output_tokens <= task.max_tokens;
    e.output = test::toy_output(task.prompt,
                                e.has_true_length ? task.true_output_tokens : task.max_tokens);
    e.may_be_cancelled = pick(0, 9) == 0;
    expected.push_back(std::move(e));
    tasks.push_back(std::move(task));
  }
  const auto handles = engine->submit_all(tasks);
  for (int i = 0; i < count; ++i) {
    if (expected[i].may_be_cancelled) engine->cancel(handles[i]->id());
  }
  CHECK(engine->wait_idle(300));
  engine->check_integrity();
  CHECK(executor->known_tasks() == 0);
  const EngineStats stats = engine->stats();
  CHECK(stats.finished == count && stats.submitted == count && stats.live == 0);
  CHECK(stats.free_blocks == stats.total_blocks &&
        stats.free_host_blocks == stats.total_host_blocks);

  for (int i = 0; i < count; ++i) {
    CHECK(handles[i]->done());
    const TaskResult result = handles[i]->wait(0);
    const int32_t longest = static_cast<int32_t>(tasks[i].prompt.size()) + tasks[i].max_tokens - 1;
    const bool too_long = longest > room || (!divisible && longest > options.max_step_tokens);
    std::vector<int32_t> output;
    for (const Token& token : result.tokens) output.push_back(token.id);
    const std::vector<int32_t>& whole = expected[i].output;
    CHECK(output.size() <= whole.size() && std::equal(output.begin(), output.end(), whole.begin()));
    switch (result.reason) {
      case FinishReason::stop:
        CHECK(expected[i].has_true_length && output.size() == whole.size());
        break;
      case FinishReason::length:
        CHECK(!expected[i].has_true_length && output.size() == whole.size());
        break;
      case FinishReason::cancelled:
        CHECK(expected[i].may_be_cancelled);
        break;
      case FinishReason::deadline:
        CHECK(tasks[i].stop_at_deadline);
        break;
      case FinishReason::rejected:
        CHECK(too_long && !result.error.empty());
        break;
      default:
        CHECK_MESSAGE(false, "ended as " + std::string(to_string(result.reason)));
    }
    CHECK(!too_long || result.reason == FinishReason::rejected ||
          result.reason == FinishReason::cancelled);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 50;
  for (int round = 0; round < rounds; ++round) {
    run(round, 200, round % 3 != 0, round % 2 == 0 ? LoopKind::plain : LoopKind::overlap);
  }
  return test::check_result();
}
