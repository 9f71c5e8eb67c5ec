#pragma once

#include <algorithm>
#include <bit>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "slicellm/clock.h"
#include "slicellm/engine.h"
#include "slicellm/error.h"
#include "slicellm/executor.h"
#include "slicellm/policy.h"

// Test doubles for the engine's native tests.
namespace slicellm::test {

inline uint64_t hash(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

constexpr int32_t kToyVocab = 1000;

// The "K and V" of a token at a position, and the "next token" of everything in a task's KV.
inline uint64_t toy_kv(int32_t token, int32_t position) {
  return hash(static_cast<uint64_t>(token) << 32 | static_cast<uint32_t>(position));
}
inline int32_t toy_token(uint64_t sum) { return static_cast<int32_t>(hash(sum) % kToyVocab); }

// What a task must produce, whatever its schedule.
inline std::vector<int32_t> toy_output(const std::vector<int32_t>& prompt, int32_t count) {
  uint64_t sum = 0;
  int32_t position = 0;
  for (int32_t token : prompt) sum += toy_kv(token, position++);
  std::vector<int32_t> output;
  for (int32_t i = 0; i < count; ++i) {
    output.push_back(toy_token(sum));
    sum += toy_kv(output.back(), position++);
  }
  return output;
}

// A deterministic model of one number a token: the next token is a hash of everything that the
// block table says is in KV. A wrong table, a lost swap or a stale block changes the output.
class ToyExecutor : public Executor {
 public:
  ToyExecutor(int32_t blocks, int32_t host_blocks, int32_t block_tokens)
      : layout_{.layers = 1, .kv_heads = 1, .head_dim = 1, .block_tokens = block_tokens},
        device_(static_cast<size_t>(blocks) * block_tokens),
        host_(static_cast<size_t>(host_blocks) * block_tokens),
        blocks_(blocks),
        host_blocks_(host_blocks) {}

  std::string name() const override { return "toy"; }
  const KvLayout& kv_layout() const override { return layout_; }
  int32_t num_blocks() const override { return blocks_; }
  int32_t num_host_blocks() const override { return host_blocks_; }

  void add_task(const ExecutorTask& task) override {
    if (!tasks_.emplace(task.id, Task{.true_length = task.true_output_tokens}).second) {
      throw Error(ErrorKind::state, "toy task", std::to_string(task.id), "a new one");
    }
  }
  void remove_task(TaskId id) override {
    if (tasks_.erase(id) == 0) {
      throw Error(ErrorKind::state, "toy task", std::to_string(id), "a known one");
    }
  }
  size_t known_tasks() const { return tasks_.size(); }
  bool can_chain(TaskId id) const override { return id % 8 != 0; }

  Ticket submit(Batch batch) override {
    if (batches_.size() == 2) throw Error(ErrorKind::state, "toy step", "a third one", "two");
    batches_.push_back(std::move(batch));
    return ++ticket_;
  }

  StepResult wait(Ticket) override {
    Batch batch = std::move(batches_.front());
    batches_.pop_front();
    const size_t width = static_cast<size_t>(layout_.block_tokens);
    for (const KvCopy& c : batch.copies) {
      auto device = device_.begin() + static_cast<std::ptrdiff_t>(c.device_block * width);
      auto host = host_.begin() + static_cast<std::ptrdiff_t>(c.host_block * width);
      if (c.to_host) {
        std::copy_n(device, width, host);
        std::fill_n(device, width, 0xdead);  // nobody may rely on what is left there
      } else {
        std::copy_n(host, width, device);
        std::fill_n(host, width, 0xdead);
      }
    }
    StepResult result;
    for (const BatchSequence& s : batch.sequences) {
      if (s.chained) {
        const Task& task = tasks_.at(s.task);
        if (task.last_step != steps_ || !can_chain(s.task)) {
          throw Error(ErrorKind::state, "toy chain", "no token of the step before", "one");
        }
        batch.tokens.at(static_cast<size_t>(s.begin + s.count - 1)) = task.last_token;
      }
      auto slot = [&](int32_t position) -> uint64_t& {
        return device_.at(static_cast<size_t>(s.blocks.at(static_cast<size_t>(position) / width)) *
                              width +
                          static_cast<size_t>(position) % width);
      };
      for (int32_t i = 0; i < s.count; ++i) {
        slot(s.past + i) = toy_kv(batch.tokens.at(static_cast<size_t>(s.begin + i)), s.past + i);
      }
      if (!s.sample || s.task == kNoTask) continue;
      Task& task = tasks_.at(s.task);
      uint64_t sum = 0;
      for (int32_t p = 0; p < s.past + s.count; ++p) sum += slot(p);
      RowResult row;
      row.task = s.task;
      row.token = toy_token(sum);
      row.invalid = invalid_token >= 0 && row.token == invalid_token;
      row.ended = task.true_length > 0 && ++task.produced == task.true_length;
      task.last_token = row.token;
      task.last_step = steps_ + 1;
      result.rows.push_back(row);
    }
    if (++steps_ == fail_at) {
      throw Error(ErrorKind::resource, "toy memory", "none", "some");
    }
    result.duration =
        step_seconds + token_seconds * static_cast<double>(batch.tokens.size()) + 1e-9;
    return result;
  }

  double step_seconds = 0.01, token_seconds = 0.001;
  int64_t fail_at = 0;         // step that throws; 0 = none
  int32_t invalid_token = -1;  // what counts as broken logits

 private:
  struct Task {
    int32_t produced = 0, true_length = 0;
    int32_t last_token = 0;
    int64_t last_step = -1;  // that drew it
  };

  KvLayout layout_;
  std::vector<uint64_t> device_, host_;
  int32_t blocks_, host_blocks_;
  std::map<TaskId, Task> tasks_;
  std::deque<Batch> batches_;  // in flight
  Ticket ticket_ = 0;
  int64_t steps_ = 0;
};

// Does anything that the rules allow: random rows, chunk sizes, pauses, swaps, drops and padding.
// The same view at the same step gives the same plan.
class RandomPolicy : public Policy {
 public:
  explicit RandomPolicy(uint64_t seed, double pause = 0.3, double move = 0.05)
      : seed_(seed), pause_(pause), move_(move) {}
  std::string name() const override { return "random"; }
  void on(const TaskEvent&, const View&) override { ++step_; }
  void commit(const StepPlan&, const StepOutcome&, const View&) override { ++step_; }

  StepPlan plan(const View& view) override {
    std::mt19937_64 rng(hash(seed_ ^ hash(step_)) ^ std::bit_cast<uint64_t>(view.now));
    auto chance = [&rng](double p) { return std::uniform_real_distribution<>()(rng) < p; };
    StepPlan plan;
    std::vector<int32_t> order(view.live.begin(), view.live.end());
    std::shuffle(order.begin(), order.end(), rng);
    int32_t free = view.free_blocks, free_host = view.free_host_blocks;
    int32_t rows = view.max_rows, tokens = view.max_step_tokens;
    for (int32_t slot : order) {
      TaskView task = view.tasks[slot];
      if (task.kv != KvState::none && chance(move_)) {
        plan.kv.push_back({KvActionKind::drop, slot});
        (task.kv == KvState::device ? free : free_host) += task.blocks;
        task.kv = KvState::none;
        task.blocks = task.cached = 0;
      } else if (task.kv == KvState::device && task.blocks <= free_host && chance(move_)) {
        plan.kv.push_back({KvActionKind::swap_out, slot});
        free += task.blocks;
        free_host -= task.blocks;
        task.kv = KvState::host;
      } else if (task.kv == KvState::host && task.blocks <= free && chance(0.3)) {
        plan.kv.push_back({KvActionKind::swap_in, slot});
        free -= task.blocks;
        free_host += task.blocks;
        task.kv = KvState::device;
      }
      if (task.kv == KvState::host || rows == 0 || chance(pause_)) continue;
      int32_t n = task.pending();
      if (n > 1 && task.prefill_divisible) n = std::uniform_int_distribution<>(1, n)(rng);
      const int32_t need = std::max(0, view.blocks_for(task.cached + int64_t{n}) - task.blocks);
      if (n > tokens || need > free) continue;
      add(plan, task, slot, n);
      free -= need;
      tokens -= n;
      --rows;
    }
    for (; chance(0.3) && tokens > 0; --tokens) {
      const bool row = rows > 0 && chance(0.7);
      const int32_t n = std::uniform_int_distribution<>(1, row ? 20 : tokens)(rng);
      const int32_t need = view.blocks_for(n + row);
      if (need > free) break;
      (row ? plan.padding.rows : plan.padding.prompts).push_back(n);
      free -= need;
      rows -= row;
      if (!row) tokens -= n - 1;
    }
    if (plan.runs() || chance(0.5)) {
      if (plan.empty()) plan.wake_at = view.now + 1e-4;
      return plan;
    }
    return force(view);
  }

 private:
  static void add(StepPlan& plan, const TaskView& task, int32_t slot, int32_t n) {
    if (task.ready_to_decode()) {
      plan.decode.push_back(slot);
    } else {
      plan.prefill.push_back({slot, n});
    }
  }

  // The oldest task alone, everything else dropped: always possible.
  static StepPlan force(const View& view) {
    StepPlan plan;
    for (int32_t slot : view.live) {
      if (view.tasks[slot].kv != KvState::none) plan.kv.push_back({KvActionKind::drop, slot});
    }
    const int32_t slot = view.live.front();
    TaskView task = view.tasks[slot];
    task.cached = 0;
    const int32_t most = std::min(view.max_step_tokens, view.total_blocks * view.block_tokens);
    add(plan, task, slot, std::min(task.pending(), most));
    return plan;
  }

  uint64_t seed_, step_ = 0;
  double pause_, move_;
};

// A latency model for tests that do not care.
inline std::unique_ptr<LatencyModel> toy_latency() {
  const double seconds[] = {0.01};
  return make_table_latency_model(seconds, 0.01, 0.001);
}

}  // namespace slicellm::test
