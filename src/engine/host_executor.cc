#include <chrono>
#include <cstddef>
#include <deque>

#include "engine/executor_tasks.h"
#include "engine/executors.h"
#include "slicellm/error.h"
#include "slicellm/executor.h"
#include "slicellm/model.h"

namespace slicellm {
namespace {

// Computes a step when it is waited for, on the calling thread, and draws tokens on the host: for
// CPUs, and for models in several parts, between which the host carries the activations.
class HostExecutor final : public Executor {
 public:
  HostExecutor(std::shared_ptr<Model> model, int32_t device_blocks, int32_t host_blocks)
      : model_(std::move(model)), layout_(model_->kv_layout()), host_blocks_(host_blocks) {
    kv_ = model_->allocate_kv(device_blocks);
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

  std::string name() const override { return model_->device().name(); }
  const KvLayout& kv_layout() const override { return layout_; }
  int32_t num_blocks() const override { return kv_->num_blocks(); }
  int32_t num_host_blocks() const override { return host_blocks_; }

  void add_task(const ExecutorTask& task) override { tasks_.add(task); }
  void remove_task(TaskId id) override { tasks_.remove(id); }
  bool can_chain(TaskId) const override { return true; }

  Ticket submit(Batch batch) override {
    check_in_flight(queue_.size());
    queue_.push_back(std::move(batch));
    return next_ticket_++;
  }

  StepResult wait(Ticket ticket) override {
    check_oldest(ticket, next_ticket_, queue_.size());
    Batch batch = std::move(queue_.front());
    queue_.pop_front();
    for (BatchSequence& s : batch.sequences) {
      if (!s.chained) continue;
      batch.tokens[s.begin + s.count - 1] = tasks_.at(s.task).last;
      s.chained = false;
    }
    return run(batch);
  }

 private:
  void copy(const KvCopy& c) {
    check_copy(c, kv_->num_blocks(), host_blocks_);
    std::byte* host = host_.get() + layout_.block_bytes() * static_cast<size_t>(c.host_block);
    if (c.to_host) {
      kv_->copy_to_host(c.device_block, host);
    } else {
      kv_->copy_from_host(c.device_block, host);
    }
  }

  StepResult run(const Batch& batch) {
    const auto start = std::chrono::steady_clock::now();
    StepResult result;
    for (const KvCopy& c : batch.copies) copy(c);
    if (!batch.sequences.empty()) {
      rows_.clear();
      for (const BatchSequence& s : batch.sequences) {
        if (!s.sample) continue;
        for (int32_t back = s.drafts; back >= 0; --back) {
          rows_.push_back(s.begin + s.count - 1 - back);
        }
      }
      const size_t vocab = static_cast<size_t>(model_->spec().vocab);
      const auto floats = static_cast<int64_t>(rows_.size() * vocab);
      if (!logits_ || logits_->capacity() < floats) logits_ = model_->device().allocate(floats);
      model_->forward(batch, *kv_, rows_, *logits_);
      result.rows.reserve(rows_.size());
      const float* row = logits_on_host(static_cast<size_t>(floats));
      for (const BatchSequence& s : batch.sequences) {
        if (!s.sample) continue;
        const auto draw = [&](size_t i) { return tasks_.sample(s.task, {row + i * vocab, vocab}); };
        if (s.task != kNoTask) tasks_.confirm(drafts_of(batch, s), draw, result.rows);
        row += (1 + static_cast<size_t>(s.drafts)) * vocab;
      }
    }
    result.duration =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return result;
  }

  // The step's logits, once it is done.
  const float* logits_on_host(size_t floats) {
    Device& device = model_->device();
    if (device.name() != "cuda") return logits_->data();
    read_logits_.resize(floats);
    device.read(*logits_, read_logits_);
    return read_logits_.data();
  }

  std::shared_ptr<Model> model_;
  KvLayout layout_;
  int32_t host_blocks_;
  std::unique_ptr<KvStorage> kv_;
  std::unique_ptr<std::byte[]> host_;
  ExecutorTasks tasks_;
  std::deque<Batch> queue_;
  Ticket next_ticket_ = 0;
  std::vector<int32_t> rows_;
  std::unique_ptr<Activation> logits_;  // [rows, vocab]
  std::vector<float> read_logits_;      // the same, from a GPU
};

}  // namespace

std::shared_ptr<Executor> make_host_executor(std::shared_ptr<Model> model, int32_t device_blocks,
                                             int32_t host_blocks) {
  return std::make_shared<HostExecutor>(std::move(model), device_blocks, host_blocks);
}

}  // namespace slicellm
