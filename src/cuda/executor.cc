#include <array>
#include <bit>
#include <vector>

#include "cuda/device.h"
#include "cuda/kv_storage.h"
#include "cuda/kv_swapper.h"
#include "cuda/sampler.h"
#include "cuda/step_graphs.h"
#include "engine/executor_tasks.h"
#include "engine/executors.h"
#include "slicellm/model.h"

namespace slicellm::cuda {
namespace {

class CudaExecutor final : public Executor {
 public:
  CudaExecutor(std::shared_ptr<Model> model, int32_t device_blocks, int32_t host_blocks)
      : model_(std::move(model)),
        device_(dynamic_cast<CudaDevice&>(model_->device())),
        layout_(model_->kv_layout()),
        vocab_(model_->spec().vocab),
        kv_(make_kv(device_, layout_, device_blocks)),
        swapper_(*kv_, device_.stream(), host_blocks),
        sampler_(device_.stream(), device_.memory_account()) {
    // What others left on this thread, freeing among them, is no error of the steps to come.
    cudaGetLastError();
  }
  ~CudaExecutor() override {
    // The device may still be at work on what is freed next.
    if (in_flight_ > 0) cudaStreamSynchronize(device_.stream());
  }

  std::string name() const override { return "cuda"; }
  const KvLayout& kv_layout() const override { return layout_; }
  int32_t num_blocks() const override { return kv_->num_blocks(); }
  int32_t num_host_blocks() const override { return swapper_.host_blocks(); }

  void add_task(const ExecutorTask& task) override { tasks_.add(task); }
  void remove_task(TaskId id) override { tasks_.remove(id); }
  bool can_chain(TaskId id) const override {
    return DeviceSampler::can_draw(tasks_.at(id).sampling, vocab_);
  }

  Ticket submit(Batch batch) override {
    check_in_flight(in_flight_);
    device_.select();
    const Stream& stream = device_.stream();
    Step& step = steps_[static_cast<size_t>(next_ticket_) % kMaxInFlight];
    step.rows.clear();
    step.graph = false;
    step.start.record(stream);
    swapper_.take(batch.copies, step.start);
    if (batch.sequences.empty()) {
      swapper_.wait_for_all();  // the step takes as long as its copies
    } else {
      swapper_.wait_for(batch.sequences);
      start(batch, step);
    }
    step.end.record(stream);
    step.copies_beside = swapper_.are_beside();
    swapper_.start();
    ++in_flight_;
    return next_ticket_++;
  }

  StepResult wait(Ticket ticket) override {
    check_oldest(ticket, next_ticket_, in_flight_);
    device_.select();
    --in_flight_;
    Step& step = steps_[static_cast<size_t>(ticket) % kMaxInFlight];
    step.end.synchronize();
    StepResult result;
    result.duration = step.end.seconds_since(step.start);
    result.graph = step.graph;
    result.copies_beside = step.copies_beside;
    result.rows.reserve(step.rows.size());
    const auto vocab = static_cast<size_t>(vocab_);
    for (const Row& row : step.rows) {
      const auto draw = [&](size_t i) {
        const size_t index = row.index + i;
        if (row.on_device) return tasks_.commit(row.task, step.tokens.get<int32_t>()[index]);
        return tasks_.sample(row.task, {step.logits.get<float>() + index * vocab, vocab});
      };
      const size_t rows = result.rows.size();
      tasks_.confirm(row.drafts, draw, result.rows);
      const size_t unused = row.drafts.size() + 1 - (result.rows.size() - rows);
      if (row.on_device) tasks_.at(row.task).started -= static_cast<int32_t>(unused);
    }
    return result;
  }

 private:
  struct Row {
    TaskId task;
    bool on_device;               // where its tokens are drawn
    size_t index;                 // of the first in Step::tokens or Step::logits
    std::vector<int32_t> drafts;  // guesses to confirm; the tokens after them follow in order
  };

  // A step in flight: what the host needs once the device is done.
  struct Step {
    Event start, end;
    std::vector<Row> rows;
    PinnedBuffer tokens;                        // int32 [rows drawn on the device]
    PinnedBuffer logits;                        // float [rows drawn on the host, vocab]
    bool graph = false, copies_beside = false;  // see StepResult
  };

  static std::unique_ptr<CudaKvStorage> make_kv(CudaDevice& device, const KvLayout& layout,
                                                int32_t blocks) {
    device.select();
    return std::make_unique<CudaKvStorage>(layout, blocks, device.stream(),
                                           device.memory_account());
  }

  // Forward pass and drawing of tokens.
  void start(Batch& batch, Step& step) {
    rows_.clear();
    drawn_.clear();
    std::vector<int32_t> to_host;  // rows of the logits
    for (BatchSequence& s : batch.sequences) {
      if (s.chained) s.drawn = tasks_.at(s.task).place;
      if (!s.sample) continue;
      auto index = static_cast<int32_t>(rows_.size());
      for (int32_t back = s.drafts; back >= 0; --back) {
        rows_.push_back(s.begin + s.count - 1 - back);
      }
      if (s.task == kNoTask) continue;
      ExecutorTasks::Task& task = tasks_.at(s.task);
      const std::span guesses = drafts_of(batch, s);
      const std::vector<int32_t> drafts(guesses.begin(), guesses.end());
      if (DeviceSampler::can_draw(task.sampling, vocab_)) {
        step.rows.push_back({s.task, true, drawn_.size(), drafts});
        for (int32_t i = 0; i <= s.drafts; ++i) {
          const auto position = static_cast<uint64_t>(task.started++);
          task.place = static_cast<int32_t>(drawn_.size());
          drawn_.push_back(DeviceSampler::make_row(task.sampling, position, index++));
        }
      } else {
        step.rows.push_back({s.task, false, to_host.size(), drafts});
        for (int32_t i = 0; i <= s.drafts; ++i) to_host.push_back(index++);
      }
    }
    const int64_t floats = static_cast<int64_t>(rows_.size()) * vocab_;
    if (!logits_ || logits_->capacity() < floats) {
      const auto rows = static_cast<int64_t>(std::bit_ceil(rows_.size()));
      logits_.reset();  // both need not fit
      logits_ = device_.allocate(rows * vocab_);
    }
    sampler_.prepare(logits_->data(), vocab_, drawn_);
    batch.drawn = sampler_.drawn();
    model_->forward(batch, *kv_, rows_, *logits_, [&](const Model::Ops& ops) {
      step.graph = launch(is_decode_step(batch), ops);
    });
    sampler_.fetch(step.tokens);
    const size_t row_bytes = sizeof(float) * static_cast<size_t>(vocab_);
    step.logits.reserve(to_host.size() * row_bytes, "logits");
    for (size_t i = 0; i < to_host.size(); ++i) {
      device_.stream().copy(step.logits.get() + i * row_bytes,
                            logits_->data() + int64_t{to_host[i]} * vocab_, row_bytes,
                            cudaMemcpyDeviceToHost);
    }
  }

  // Launches a step's ops and the drawing of its tokens, a decode step by a record if there is one.
  // Returns whether there was.
  bool launch(bool is_decode, const Model::Ops& ops) {
    const auto launches = [&](const Stream& stream) {
      device_.launch_on(stream);
      ops();
      sampler_.draw(stream);
    };
    if (!is_decode) {
      launches(device_.stream());
      return false;
    }
    Signature signature = device_.signature();
    sampler_.add_to(signature);
    return graphs_.run(device_.stream(), std::move(signature), launches);
  }

  std::shared_ptr<Model> model_;
  CudaDevice& device_;
  KvLayout layout_;
  int32_t vocab_;
  std::unique_ptr<CudaKvStorage> kv_;
  KvSwapper swapper_;
  ExecutorTasks tasks_;
  std::array<Step, kMaxInFlight> steps_;  // by ticket, in turn
  size_t in_flight_ = 0;
  Ticket next_ticket_ = 0;

  DeviceSampler sampler_;
  StepGraphs graphs_;
  std::unique_ptr<Activation> logits_;  // [rows, vocab]
  std::vector<int32_t> rows_;
  std::vector<SampleRow> drawn_;
};

}  // namespace
}  // namespace slicellm::cuda

namespace slicellm {

std::shared_ptr<Executor> make_cuda_executor(std::shared_ptr<Model> model, int32_t device_blocks,
                                             int32_t host_blocks) {
  return std::make_shared<cuda::CudaExecutor>(std::move(model), device_blocks, host_blocks);
}

}  // namespace slicellm
