#include "cuda/device.h"

#include <algorithm>
#include <sstream>

#include "cpu/isa.h"
#include "cpu/system_memory.h"
#include "cuda/kv_storage.h"
#include "cuda/rope.h"
#include "cuda/sampling.h"
#include "slicellm/error.h"

namespace slicellm::cuda {
namespace {

constexpr double kDefaultMemRatio = 0.9;

class CudaActivation final : public Activation {
 public:
  CudaActivation(const DeviceMemory& memory, int64_t floats)
      : floats_(floats),
        memory_(memory, sizeof(float) * static_cast<size_t>(floats), "activations") {}
  float* data() override { return memory_.get<float>(); }
  int64_t capacity() const override { return floats_; }

 private:
  int64_t floats_;
  DeviceBuffer memory_;
};

DeviceBuffer upload(Uploader& uploader, const std::vector<float>& values) {
  return uploader.array(values.data(), values.size() * sizeof(float), "weights");
}

class CudaLinear final : public PackedLinear {
 public:
  CudaLinear(Uploader& uploader, const LinearPacker& packer)
      : layout_(packer.layout()), memory_(uploader.linear(packer)) {}
  int64_t in_features() const override { return layout_.in; }
  int64_t out_features() const override { return layout_.out; }
  size_t bytes() const override { return layout_.bytes; }

  const LinearLayout& layout() const { return layout_; }
  const void* data() const { return memory_.get(); }
  InputType input_type() const {
    return layout_.kind == WeightKind::bfloat16 ? InputType::bfloat16 : InputType::float16;
  }

 private:
  LinearLayout layout_;
  DeviceBuffer memory_;
};

class CudaNorm final : public PackedNorm {
 public:
  CudaNorm(Uploader& uploader, const NormWeights& norm)
      : width_(static_cast<int64_t>(norm.weight.size())),
        weight_(upload(uploader, norm.weight)),
        bias_(upload(uploader, norm.bias)),
        norm_{norm.kind, norm.eps, weight_.get<float>(), bias_.get<float>()} {}
  int64_t width() const override { return width_; }
  const DeviceNorm& norm() const { return norm_; }

 private:
  int64_t width_;
  DeviceBuffer weight_, bias_;
  DeviceNorm norm_;
};

class CudaEmbedding final : public EmbeddingTable {
 public:
  CudaEmbedding(Uploader& uploader, const Weight& table)
      : rows_(table.rows()),
        data_(uploader.array(table.data, table.data_bytes, "embedding")),
        scale_(upload(uploader, table.scale)),
        minimum_(upload(uploader, table.minimum)),
        table_{table.dtype,
               table.cols(),
               table.group_size > 0 ? table.group_size : table.cols(),
               table.groups(),
               data_.get(),
               scale_.get<float>(),
               minimum_.get<float>()} {}
  int64_t rows() const override { return rows_; }
  int64_t cols() const override { return table_.cols; }
  const DeviceTable& table() const { return table_; }

 private:
  int64_t rows_;
  DeviceBuffer data_, scale_, minimum_;
  DeviceTable table_;
};

const float* data_of(const Activation& activation) {
  return const_cast<Activation&>(activation).data();
}

void check_span(const Activation& activation, size_t floats) {
  if (static_cast<int64_t>(floats) <= activation.capacity()) return;
  throw Error(ErrorKind::invalid_argument, "floats", std::to_string(floats),
              "at most the activation's " + std::to_string(activation.capacity()));
}

// Which GPU; throws where there is none of this index.
int checked_index(int index) {
  std::string why;
  const int count = device_count(&why);
  if (index >= 0 && index < count) return index;
  throw Error(ErrorKind::unsupported, "device", "\"cuda:" + std::to_string(index) + '"',
              count == 0 ? "a machine with a usable NVIDIA GPU: " + (why.empty() ? "none" : why)
                         : "one of its " + std::to_string(count) + " GPUs, from cuda:0 on");
}

DeviceInfo checked_info(int index) {
  DeviceInfo info = device_info(index);
  if (info.major >= 8) return info;
  throw Error(ErrorKind::unsupported, "device",
              info.name + " (sm_" + std::to_string(info.major) + std::to_string(info.minor) + ")",
              "a GPU of compute capability 8.0 or newer");
}

double checked_ratio(const GpuOptions& options) {
  const double ratio = options.mem_ratio.value_or(kDefaultMemRatio);
  if (ratio > 0 && ratio <= 1) return ratio;
  throw Error(ErrorKind::invalid_argument, "gpu_mem_ratio", std::to_string(ratio),
              "a share above 0, at most 1");
}

}  // namespace

CudaDevice::Selected::Selected(int wanted) : index(checked_index(wanted)) {
  SLICELLM_CUDA_CHECK(cudaSetDevice(index));
}

CudaDevice::CudaDevice(int index, const GpuOptions& options)
    : selected_(index),
      info_(checked_info(index)),
      threads_(cpu::usable_cores()),
      mem_ratio_(checked_ratio(options)),
      memory_(options.vram_limit == 0 ? DeviceMemory::kNoLimit : options.vram_limit),
      uploader_(stream_, memory_, info_.integrated, threads_),
      staging_(stream_, memory_),
      linear_input_(memory_),
      linear_sums_(memory_, linear_workspace_bytes(info_.multiprocessors), "workspace"),
      queries_(memory_),
      partials_(memory_),
      counters_(memory_) {}

void CudaDevice::select() const { SLICELLM_CUDA_CHECK(cudaSetDevice(selected_.index)); }

std::string CudaDevice::describe() const {
  return info_.name + " (cuda:" + std::to_string(selected_.index) + ", sm_" +
         std::to_string(info_.major) + std::to_string(info_.minor) + ")";
}

std::unique_ptr<PackedLinear> CudaDevice::pack(std::span<const Weight> matrices,
                                               std::span<const std::vector<float>> biases,
                                               ActivationType /*activation*/, bool gated) {
  select();
  auto linear =
      std::make_unique<CudaLinear>(uploader_, LinearPacker(matrices, biases, gated, threads_));
  widest_input_ = std::max<int64_t>(widest_input_, linear->layout().input_width());
  return linear;
}

std::unique_ptr<PackedNorm> CudaDevice::pack_norm(const NormWeights& norm) {
  select();
  return std::make_unique<CudaNorm>(uploader_, norm);
}

std::unique_ptr<PackedRope> CudaDevice::pack_rope(std::shared_ptr<const RopeTable> table) {
  select();
  ++allocations_;
  return std::make_unique<CudaRope>(stream_, memory_, *table);
}

std::unique_ptr<EmbeddingTable> CudaDevice::embedding(const Weight& table) {
  select();
  auto embedding = std::make_unique<CudaEmbedding>(uploader_, table);
  release_rows(table, 0, table.rows());
  return embedding;
}

void CudaDevice::finish_loading() {
  select();
  uploader_.finish();
}

std::unique_ptr<Activation> CudaDevice::allocate(int64_t floats) {
  select();
  ++allocations_;
  return std::make_unique<CudaActivation>(memory_, floats);
}

std::unique_ptr<KvStorage> CudaDevice::allocate_kv(const KvLayout& layout, int32_t blocks) {
  select();
  return std::make_unique<CudaKvStorage>(layout, blocks, stream_, memory_);
}

CudaDevice::MemoryInfo CudaDevice::memory_info() const {
  select();
  MemoryInfo info = {};
  SLICELLM_CUDA_CHECK(cudaMemGetInfo(&info.free, &info.total));
  // There, what the system could take back (the pages of the model's file) counts as used.
  if (info_.integrated) {
    info.free =
        std::min(info.total - std::min(info.total, memory_.held()), cpu::available_memory());
  }
  return info;
}

size_t CudaDevice::free_memory() const {
  const MemoryInfo info = memory_info();
  const auto spare = static_cast<size_t>((1 - mem_ratio_) * static_cast<double>(info.total));
  return std::min(info.free - std::min(spare, info.free), memory_.room());
}

size_t CudaDevice::workspace_bytes(const StepBounds& most) const {
  const auto count = [](int64_t n) { return static_cast<size_t>(n); };
  const size_t rows = count(std::max(most.tokens, most.rows));
  const size_t linear = sizeof(uint16_t) * rows * (count(most.widest) + kUnitColumns);
  const size_t attention = AttentionPlan::most_bytes(most, info_.multiprocessors);
  const size_t drawing =
      sample_workspace_bytes(static_cast<int32_t>(most.vocab), static_cast<int32_t>(most.rows)) +
      sizeof(int32_t) * count(most.rows);
  const size_t staged = AttentionPlan::most_image_bytes(most, info_.multiprocessors) +
                        sizeof(int32_t) * count(most.tokens + most.rows);
  // What grows does so by half at least; staging doubles, and is 64 KiB at first.
  return (linear + attention + drawing) * 3 / 2 + 4 * staged +
         4 * sizeof(SampleRow) * count(most.rows) + (size_t{128} << 10);
}

std::string CudaDevice::describe_memory() const {
  const MemoryInfo info = memory_info();
  std::ostringstream text;
  text << info.free << " free of " << info.total << " bytes at gpu_mem_ratio " << mem_ratio_;
  if (memory_.limit() != DeviceMemory::kNoLimit) {
    text << " and " << memory_.held() << " held at vram_limit " << memory_.limit();
  }
  return text.str();
}

void CudaDevice::read(const Activation& from, std::span<float> to) {
  check_span(from, to.size());
  select();
  stream_.copy(to.data(), data_of(from), to.size_bytes(), cudaMemcpyDeviceToHost);
  stream_.synchronize();
}

void CudaDevice::write(std::span<const float> from, Activation& to) {
  check_span(to, from.size());
  select();
  stream_.copy(to.data(), from.data(), from.size_bytes(), cudaMemcpyHostToDevice);
  stream_.synchronize();
}

void CudaDevice::begin_step(const Batch& batch, std::span<const int32_t> rows,
                            std::span<const AttentionShape> attention) {
  select();
  host_ids_ = batch.tokens;
  for (const BatchSequence& s : batch.sequences) {
    if (s.chained) host_ids_.at(static_cast<size_t>(s.begin + s.count - 1)) = -1 - s.drawn;
  }
  launch_stream_ = &stream_;
  drawn_ = batch.drawn;
  logit_rows_ = rows.size();
  plans_.clear();
  for (const AttentionShape& shape : attention) {
    plans_.push_back({AttentionPlan(batch, shape, info_.multiprocessors), nullptr});
  }
  staging_.begin();
  ids_ = staging_.put(std::span<const int32_t>(host_ids_));
  rows_ = staging_.put(rows);
  for (Plan& plan : plans_) plan.image = staging_.put(plan.plan.image());
  staging_.flush();
  reserve_workspaces(std::max(batch.tokens.size(), rows.size()));
}

void CudaDevice::reserve_workspaces(size_t most_rows) {
  linear_input_.reserve(sizeof(uint16_t) * most_rows * static_cast<size_t>(widest_input_),
                        "workspace");
  for (const Plan& plan : plans_) {
    queries_.reserve(plan.plan.query_bytes(), "workspace");
    partials_.reserve(plan.plan.partial_bytes(), "workspace");
    if (plan.plan.counter_bytes() > counters_.bytes()) {
      counters_.reserve(plan.plan.counter_bytes(), "workspace");
      SLICELLM_CUDA_CHECK(cudaMemsetAsync(counters_.get(), 0, counters_.bytes(), stream_));
    }
  }
}

Signature CudaDevice::signature() const {
  Signature signature = {host_ids_.size(), logit_rows_,
                         // Stands for the addresses of activations and rotary tables.
                         allocations_, number_of(ids_), number_of(drawn_), number_of(rows_),
                         number_of(linear_input_.get()), number_of(queries_.get()),
                         number_of(partials_.get()), number_of(counters_.get())};
  for (const Plan& plan : plans_) {
    signature.push_back(number_of(plan.image));
    plan.plan.add_to(signature);
  }
  return signature;
}

void CudaDevice::embed(std::span<const int32_t> tokens, const EmbeddingTable& table,
                       Activation& x) {
  for (const int32_t id : tokens) {
    if (id < 0 || id >= table.rows()) {
      throw Error(ErrorKind::invalid_argument, "token", std::to_string(id),
                  "an id from 0 to " + std::to_string(table.rows() - 1));
    }
  }
  select();
  embed_rows(*launch_stream_, dynamic_cast<const CudaEmbedding&>(table).table(), ids_, drawn_,
             static_cast<int64_t>(tokens.size()), x.data());
}

void CudaDevice::run(const RowInput& input, const PackedNorm* norm, float* normed,
                     const PackedLinear& linear, Epilogue epilogue, float alpha, Activation& out) {
  select();
  const auto& packed = dynamic_cast<const CudaLinear&>(linear);
  const int64_t stride = packed.layout().input_width();
  const RowOutput rounded{packed.input_type(), linear_input_.get(), stride};
  if (norm != nullptr) {
    norm_rows(*launch_stream_, input, dynamic_cast<const CudaNorm&>(*norm).norm(), normed, rounded);
  } else {
    convert_rows(*launch_stream_, input, rounded);
  }
  const LinearWorkspace workspace{linear_sums_.get<float>(), info_.multiprocessors,
                                  info_.shared_per_block};
  LinearCall call;
  call.layout = &packed.layout();
  call.data = packed.data();
  call.input = linear_input_.get();
  call.n = static_cast<int>(input.n);
  call.epilogue = epilogue;
  call.alpha = alpha;
  call.out = out.data();
  run_linear(*launch_stream_, workspace, call);
}

void CudaDevice::norm_linear(Activation& x, int64_t n, const PackedNorm& norm,
                             const PackedLinear& linear, bool normed_into_x, Activation& out) {
  run({x.data(), nullptr, n, linear.in_features()}, &norm, normed_into_x ? x.data() : nullptr,
      linear, Epilogue::store, 0, out);
}

void CudaDevice::linear_add(const Activation& in, int64_t n, const PackedLinear& linear,
                            float alpha, Activation& x) {
  run({data_of(in), nullptr, n, linear.in_features()}, nullptr, nullptr, linear, Epilogue::add,
      alpha, x);
}

void CudaDevice::norm_linear_act(Activation& x, int64_t n, const PackedNorm& norm,
                                 const PackedLinear& linear, GateActivation act, bool normed_into_x,
                                 Activation& out) {
  const Epilogue epilogue =
      act == GateActivation::silu_gate ? Epilogue::silu_gate : Epilogue::gelu_tanh;
  run({x.data(), nullptr, n, linear.in_features()}, &norm, normed_into_x ? x.data() : nullptr,
      linear, epilogue, 0, out);
}

void CudaDevice::logits(const Activation& x, std::span<const int32_t> rows, const PackedNorm& norm,
                        const PackedLinear& head, Activation& logits) {
  run({data_of(x), rows_, static_cast<int64_t>(rows.size()), head.in_features()}, &norm, nullptr,
      head, Epilogue::store, 0, logits);
}

const CudaDevice::Plan& CudaDevice::plan_for(const AttentionShape& shape) const {
  for (const Plan& plan : plans_) {
    if (plan.plan.shape() == shape) return plan;
  }
  throw Error(ErrorKind::state, "attention", "a shape that is not of this step",
              "one that begin_step was told");
}

void CudaDevice::rope_append_attend(const AttentionArgs& args) {
  select();
  const Plan& plan = plan_for(args.shape);
  const auto& rope = dynamic_cast<const CudaRope&>(*args.rope);
  AttentionRun run;
  run.image = plan.image;
  run.qkv = args.qkv->data();
  run.out = args.out->data();
  run.kv = dynamic_cast<const CudaKvStorage*>(args.kv);
  run.layer = args.layer;
  run.scale = args.scale;
  run.rope = &rope;
  run.queries = queries_.get<__half>();
  run.partials = partials_.get();
  run.counters = counters_.get<int32_t>();
  rope_append(*launch_stream_, plan.plan, run);
  attend(*launch_stream_, plan.plan, run);
}

}  // namespace slicellm::cuda

namespace slicellm {

std::shared_ptr<Device> make_cuda_device(int index, const GpuOptions& options) {
  return std::make_shared<cuda::CudaDevice>(index, options);
}

}  // namespace slicellm
