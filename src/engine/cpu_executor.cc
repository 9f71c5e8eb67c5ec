#include <chrono>
#include <cstddef>
#include <deque>
#include <unordered_map>
#include <unordered_set>

#include "engine/sampling.h"
#include "slicellm/error.h"
#include "slicellm/executor.h"
#include "slicellm/model.h"

namespace slicellm {
namespace {

constexpr size_t kMaxInFlight = 2;

class CpuExecutor final : public Executor {
 public:
  CpuExecutor(std::shared_ptr<Model> model, int32_t device_blocks, int32_t host_blocks)
      : model_(std::move(model)), layout_(model_->kv_layout()), host_blocks_(host_blocks) {
    if (device_blocks < 1 || host_blocks < 0) {
      throw Error(ErrorKind::invalid_argument, "kv blocks",
                  std::to_string(device_blocks) + " and " + std::to_string(host_blocks),
                  "at least one on the device and none or more in host memory");
    }
    kv_ = model_->device().allocate_kv(layout_, device_blocks);
    try {  // pages that are never swapped to are never touched
      host_ = std::make_unique_for_overwrite<std::byte[]>(layout_.block_bytes() *
                                                          static_cast<size_t>(host_blocks));
    } catch (const std::bad_alloc&) {
      throw Error(ErrorKind::resource, "host_kv_bytes",
                  std::to_string(host_blocks) + " blocks of " +
                      std::to_string(layout_.block_bytes()) + " bytes",
                  "what memory allows");
    }
  }

  std::string name() const override { return "cpu"; }
  const KvLayout& kv_layout() const override { return layout_; }
  int32_t num_blocks() const override { return kv_->num_blocks(); }
  int32_t num_host_blocks() const override { return host_blocks_; }

  void add_task(const ExecutorTask& task) override {
    TaskState state{.sampling = task.sampling, .true_output_tokens = task.true_output_tokens};
    if (task.sampling.repetition_penalty != 1) {
      for (int32_t id : task.prompt) state.note(id);
    }
    if (!tasks_.emplace(task.id, std::move(state)).second) {
      throw Error(ErrorKind::state, "task", std::to_string(task.id) + " twice", "a new task");
    }
  }
  void remove_task(TaskId id) override { tasks_.erase(id); }

  Ticket submit(Batch batch) override {
    if (queue_.size() == kMaxInFlight) {
      throw Error(ErrorKind::state, "step", "a third one in flight", "at most two");
    }
    queue_.push_back(std::move(batch));
    return next_ticket_++;
  }

  StepResult wait(Ticket ticket) override {
    const Ticket oldest = next_ticket_ - static_cast<Ticket>(queue_.size());
    if (queue_.empty() || ticket != oldest) {
      throw Error(ErrorKind::state, "ticket", std::to_string(ticket), "that of the oldest step");
    }
    const Batch batch = std::move(queue_.front());
    queue_.pop_front();
    return run(batch);
  }

 private:
  struct TaskState {
    Sampling sampling;
    int32_t true_output_tokens = 0;
    int32_t produced = 0;
    // Distinct ids of prompt and output, kept only for a repetition penalty.
    std::vector<int32_t> seen = {};
    std::unordered_set<int32_t> seen_set = {};

    void note(int32_t id) {
      if (seen_set.insert(id).second) seen.push_back(id);
    }
  };

  void copy(const KvCopy& c) {
    if (c.device_block < 0 || c.device_block >= kv_->num_blocks() || c.host_block < 0 ||
        c.host_block >= host_blocks_) {
      throw Error(
          ErrorKind::invalid_argument, "kv copy",
          "blocks " + std::to_string(c.device_block) + " and " + std::to_string(c.host_block),
          "blocks of the pools");
    }
    std::byte* host = host_.get() + layout_.block_bytes() * static_cast<size_t>(c.host_block);
    if (c.to_host) {
      kv_->copy_to_host(c.device_block, host);
    } else {
      kv_->copy_from_host(c.device_block, host);
    }
  }

  RowResult sample(TaskId id, std::span<const float> logits) {
    auto it = tasks_.find(id);
    if (it == tasks_.end()) {
      throw Error(ErrorKind::state, "task", std::to_string(id), "one that was added");
    }
    TaskState& task = it->second;
    RowResult row;
    row.task = id;
    sampler_.sample(task.sampling, logits, task.seen, static_cast<uint64_t>(task.produced), row);
    if (row.invalid) return row;
    ++task.produced;
    if (task.sampling.repetition_penalty != 1) task.note(row.token);
    row.ended = task.true_output_tokens > 0 && task.produced >= task.true_output_tokens;
    return row;
  }

  StepResult run(const Batch& batch) {
    const auto start = std::chrono::steady_clock::now();
    StepResult result;
    for (const KvCopy& c : batch.copies) copy(c);
    if (!batch.sequences.empty()) {
      rows_.clear();
      for (const BatchSequence& s : batch.sequences) {
        if (s.sample) rows_.push_back(s.begin + s.count - 1);
      }
      const size_t vocab = static_cast<size_t>(model_->spec().vocab);
      const auto floats = static_cast<int64_t>(rows_.size() * vocab);
      if (!logits_ || logits_->capacity() < floats) logits_ = model_->device().allocate(floats);
      model_->forward(batch, *kv_, rows_, *logits_);
      result.rows.reserve(rows_.size());
      const float* row = logits_->data();
      for (const BatchSequence& s : batch.sequences) {
        if (!s.sample) continue;
        if (s.task != kNoTask) result.rows.push_back(sample(s.task, {row, vocab}));
        row += vocab;
      }
    }
    result.duration =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return result;
  }

  std::shared_ptr<Model> model_;
  KvLayout layout_;
  int32_t host_blocks_;
  std::unique_ptr<KvStorage> kv_;
  std::unique_ptr<std::byte[]> host_;
  std::unordered_map<TaskId, TaskState> tasks_;
  std::deque<Batch> queue_;
  Ticket next_ticket_ = 0;
  Sampler sampler_;
  std::vector<int32_t> rows_;
  std::unique_ptr<Activation> logits_;  // [rows, vocab]
};

}  // namespace

std::shared_ptr<Executor> make_executor(std::shared_ptr<Model> model, int32_t device_blocks,
                                        int32_t host_blocks) {
  return std::make_shared<CpuExecutor>(std::move(model), device_blocks, host_blocks);
}

}  // namespace slicellm
