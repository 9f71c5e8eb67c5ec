// The ops of a Device on numpy arrays, for tests: each call uploads its inputs, runs one op and
// downloads the result. What an op has to write starts as NaN. Made beside _core (SLICELLM_TESTS)
// and never installed; `import slicellm` comes first, for Weight and the exceptions.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "slicellm/ops.h"
#include "test/ops/sampling.h"
#include "test/ops/upload.h"

namespace slicellm {
namespace {

namespace py = pybind11;

using Array = py::array_t<float, py::array::c_style | py::array::forcecast>;
using Ids = std::vector<int32_t>;

// A weight of one code a byte, with any scales and minimums: files of others have them.
Weight quantized(const py::array_t<uint8_t, py::array::c_style>& codes, const Array& scale,
                 const Array& minimum, const std::string& dtype, int64_t group_size) {
  if (codes.ndim() != 2) throw py::value_error("expected codes [rows, cols]");
  auto data = std::make_shared<std::vector<uint8_t>>(codes.data(), codes.data() + codes.size());
  Weight w;
  w.name = "w";
  w.dtype = parse_dtype(dtype).type;
  w.shape = {codes.shape(0), codes.shape(1)};
  w.group_size = group_size;
  if (w.dtype == DType::int4) {  // even elements in the high nibble
    for (size_t i = 0; i < data->size(); ++i) {
      const uint8_t code = (*data)[i];
      uint8_t& pair = (*data)[i / 2];
      pair = static_cast<uint8_t>(i % 2 == 0 ? code << 4 : pair | code);
    }
  }
  w.data = data->data();
  w.data_bytes = data->size();
  w.scale.assign(scale.data(), scale.data() + scale.size());
  w.minimum.assign(minimum.data(), minimum.data() + minimum.size());
  w.owner = data;
  return w;
}

std::vector<float> values_of(const Array& array) {
  return {array.data(), array.data() + array.size()};
}

int64_t rows_of(const Array& array) {
  if (array.ndim() != 2) throw py::value_error("expected a matrix [n, width]");
  return array.shape(0);
}

// A batch of one sequence, for ops that look at nothing else.
Batch plain_batch(Ids tokens) {
  BatchSequence sequence;
  sequence.count = static_cast<int32_t>(tokens.size());
  sequence.prompt_len = sequence.count;
  return {.tokens = std::move(tokens), .sequences = {std::move(sequence)}, .copies = {}};
}

struct Rope {
  std::unique_ptr<PackedRope> packed;
  RopeStyle style;
};

class OpsDevice {
 public:
  explicit OpsDevice(const std::string& name, int threads)
      : device_(make_device(name, {.threads = threads, .isa = ""})) {}

  Device& get() const { return *device_; }
  std::unique_ptr<Activation> upload(const Array& array) const {
    auto activation = device_->allocate(array.size());
    device_->write({array.data(), static_cast<size_t>(array.size())}, *activation);
    return activation;
  }
  std::unique_ptr<Activation> poisoned(int64_t rows, int64_t cols) const {
    auto activation = device_->allocate(rows * cols);
    const std::vector<float> nan(rows * cols, std::numeric_limits<float>::quiet_NaN());
    device_->write(nan, *activation);
    return activation;
  }
  Array download(const Activation& activation, int64_t rows, int64_t cols) const {
    Array array({rows, cols});
    device_->read(activation, {array.mutable_data(), static_cast<size_t>(array.size())});
    return array;
  }
  void begin(int64_t n, const Ids& rows = {}) {
    batch_ = plain_batch(Ids(n));
    device_->begin_step(batch_, rows, {});
  }

  std::unique_ptr<PackedLinear> pack(const std::vector<Weight>& matrices,
                                     const std::vector<std::vector<float>>& biases,
                                     const std::string& activation, bool gated) const {
    return device_->pack(matrices, biases, parse_activation_type(activation), gated);
  }

  std::unique_ptr<PackedNorm> norm(const Array& weight, const std::optional<Array>& bias,
                                   float eps) const {
    NormWeights norm{.kind = bias ? NormKind::layer : NormKind::rms,
                     .eps = eps,
                     .weight = values_of(weight),
                     .bias = {}};
    if (bias) norm.bias = values_of(*bias);
    return device_->pack_norm(norm);
  }

  Rope rope(const std::string& style, int32_t rotary_dim, const Array& cos,
            const Array& sin) const {
    auto table = std::make_shared<RopeTable>();
    table->style = style == "half"          ? RopeStyle::half
                   : style == "interleaved" ? RopeStyle::interleaved
                                            : RopeStyle::glm_2d;
    table->rotary_dim = rotary_dim;
    table->positions = static_cast<int32_t>(rows_of(cos));
    table->cos = values_of(cos);
    table->sin = values_of(sin);
    return {device_->pack_rope(table), table->style};
  }

  Array embed(Ids ids, const EmbeddingTable& table) {
    const auto n = static_cast<int64_t>(ids.size());
    const auto x = poisoned(n, table.cols());
    batch_ = plain_batch(std::move(ids));
    device_->begin_step(batch_, {}, {});
    device_->embed(batch_.tokens, table, *x);
    return download(*x, n, table.cols());
  }

  // The result, and x after the op.
  std::pair<Array, Array> norm_linear(const Array& x, const PackedNorm& norm,
                                      const PackedLinear& linear, bool normed_into_x) {
    const int64_t n = rows_of(x);
    const auto in = upload(x), out = poisoned(n, linear.out_features());
    begin(n);
    device_->norm_linear(*in, n, norm, linear, normed_into_x, *out);
    return {download(*out, n, linear.out_features()), download(*in, n, x.shape(1))};
  }

  std::pair<Array, Array> norm_linear_act(const Array& x, const PackedNorm& norm,
                                          const PackedLinear& linear, const std::string& act,
                                          bool normed_into_x) {
    const bool gated = act == "silu_gate";
    const int64_t n = rows_of(x), width = linear.out_features() / (gated ? 2 : 1);
    const auto in = upload(x), out = poisoned(n, width);
    begin(n);
    device_->norm_linear_act(*in, n, norm, linear,
                             gated ? GateActivation::silu_gate : GateActivation::gelu_tanh,
                             normed_into_x, *out);
    return {download(*out, n, width), download(*in, n, x.shape(1))};
  }

  Array linear_add(const Array& in, const PackedLinear& linear, float alpha, const Array& x) {
    const int64_t n = rows_of(in);
    const auto from = upload(in), to = upload(x);
    begin(n);
    device_->linear_add(*from, n, linear, alpha, *to);
    return download(*to, n, linear.out_features());
  }

  Array logits(const Array& x, const Ids& rows, const PackedNorm& norm, const PackedLinear& head) {
    const auto n = static_cast<int64_t>(rows.size());
    const auto in = upload(x), out = poisoned(n, head.out_features());
    begin(rows_of(x), rows);
    device_->logits(*in, rows, norm, head, *out);
    return download(*out, n, head.out_features());
  }

 private:
  std::shared_ptr<Device> device_;
  Batch batch_;
};

// KV blocks of one layout.
struct Kv {
  std::unique_ptr<KvStorage> storage;

  py::bytes read(int32_t block) const {
    std::string bytes(storage->layout().block_bytes(), '\0');
    storage->copy_to_host(block, bytes.data());
    return bytes;
  }
  void write(int32_t block, const std::string& bytes) {
    if (bytes.size() != storage->layout().block_bytes()) throw py::value_error("a block's bytes");
    storage->copy_from_host(block, bytes.data());
  }
};

// past, count, prompt_len, block table
using Sequence = std::tuple<int32_t, int32_t, int32_t, Ids>;

Array attend(OpsDevice& device, const Array& qkv, const std::vector<Sequence>& sequences, Kv& kv,
             int32_t layer, int32_t heads, float scale, const Rope& rope, int32_t sliding_window,
             bool bidirectional_prompt) {
  Batch batch;
  for (const auto& [past, count, prompt_len, blocks] : sequences) {
    BatchSequence sequence;
    sequence.begin = static_cast<int32_t>(batch.tokens.size());
    sequence.count = count;
    sequence.past = past;
    sequence.prompt_len = prompt_len;
    sequence.blocks = blocks;
    batch.sequences.push_back(std::move(sequence));
    batch.tokens.resize(batch.tokens.size() + static_cast<size_t>(count));
  }
  const KvLayout& layout = kv.storage->layout();
  const int64_t n = rows_of(qkv), width = int64_t{heads} * layout.head_dim;
  if (n != static_cast<int64_t>(batch.tokens.size())) {
    throw py::value_error("qkv has other rows than the sequences have tokens");
  }
  const auto in = device.upload(qkv), out = device.poisoned(n, width);
  const AttentionShape shape = {.heads = heads,
                                .kv_heads = layout.kv_heads,
                                .head_dim = layout.head_dim,
                                .rope_style = rope.style,
                                .sliding_window = sliding_window,
                                .bidirectional_prompt = bidirectional_prompt};
  device.get().begin_step(batch, {}, {&shape, 1});
  device.get().rope_append_attend({.batch = &batch,
                                   .qkv = in.get(),
                                   .out = out.get(),
                                   .kv = kv.storage.get(),
                                   .layer = layer,
                                   .shape = shape,
                                   .scale = scale,
                                   .rope = rope.packed.get()});
  return device.download(*out, n, width);
}

}  // namespace
}  // namespace slicellm

PYBIND11_MODULE(_ops, m) {
  using namespace slicellm;
  m.doc() = "Ops of a Device on numpy arrays, for tests.";
#if defined(SLICELLM_SIMT)
  m.attr("cuda") = "simt";
#elif defined(SLICELLM_CUDA)
  m.attr("cuda") = "cuda";
#else
  m.attr("cuda") = py::none();
#endif

  py::class_<PackedLinear>(m, "Linear")
      .def_property_readonly("in_features", &PackedLinear::in_features)
      .def_property_readonly("out_features", &PackedLinear::out_features)
      .def_property_readonly("bytes", &PackedLinear::bytes);
  py::class_<PackedNorm>(m, "Norm");
  py::class_<Rope>(m, "Rope");
  py::class_<EmbeddingTable>(m, "Table");
  py::class_<Kv>(m, "Kv")
      .def("read", &Kv::read, py::arg("block"))
      .def("write", &Kv::write, py::arg("block"), py::arg("bytes"))
      .def_property_readonly("block_bytes",
                             [](const Kv& kv) { return kv.storage->layout().block_bytes(); });

  m.def("quantized", &quantized, py::arg("codes"), py::arg("scale"), py::arg("minimum"),
        py::arg("dtype"), py::arg("group_size"),
        "An int4 or int8 weight of these codes [rows, cols], scales and minimums [rows, groups].");

  // Packed things live on the device and must go before it.
  const py::keep_alive<0, 1> keep;
  py::class_<OpsDevice>(m, "Device")
      .def(py::init<const std::string&, int>(), py::arg("name"), py::arg("threads") = 1)
      .def_property_readonly("name", [](const OpsDevice& d) { return d.get().name(); })
      .def("describe", [](const OpsDevice& d) { return d.get().describe(); })
      .def("free_memory", [](const OpsDevice& d) { return d.get().free_memory(); })
      .def("pack", &OpsDevice::pack, py::arg("matrices"), py::arg("biases") = py::list(),
           py::arg("activation") = "float32", py::arg("gated") = false, keep,
           "Matrices (slicellm._core.Weight) stacked by rows; `biases`: none, or one array each.")
      .def("norm", &OpsDevice::norm, py::arg("weight"), py::arg("bias") = py::none(),
           py::arg("eps") = 1e-5f, keep, "RMSNorm, or LayerNorm where there is a bias.")
      .def("rope", &OpsDevice::rope, py::arg("style"), py::arg("rotary_dim"), py::arg("cos"),
           py::arg("sin"), keep, "style: half, interleaved or glm_2d; tables [positions, dim/2].")
      .def(
          "embedding",
          [](const OpsDevice& d, const Weight& table) { return d.get().embedding(table); },
          py::arg("table"), keep)
      .def(
          "kv",
          [](const OpsDevice& d, int32_t blocks, int32_t layers, int32_t kv_heads, int32_t head_dim,
             const std::string& dtype, int32_t block_tokens) {
            const KvLayout layout{layers, kv_heads, head_dim, block_tokens,
                                  parse_dtype(dtype, "kv_cache_dtype").type};
            return Kv{d.get().allocate_kv(layout, blocks)};
          },
          py::arg("blocks"), py::arg("layers"), py::arg("kv_heads"), py::arg("head_dim"),
          py::arg("dtype") = "float16", py::arg("block_tokens") = 16, keep)
      .def("embed", &OpsDevice::embed, py::arg("ids"), py::arg("table"))
      .def("norm_linear", &OpsDevice::norm_linear, py::arg("x"), py::arg("norm"), py::arg("linear"),
           py::arg("normed_into_x") = false, "(out, x after the op)")
      .def("norm_linear_act", &OpsDevice::norm_linear_act, py::arg("x"), py::arg("norm"),
           py::arg("linear"), py::arg("act"), py::arg("normed_into_x") = false,
           "(out, x after the op); act: silu_gate or gelu_tanh.")
      .def("linear_add", &OpsDevice::linear_add, py::arg("input"), py::arg("linear"),
           py::arg("alpha"), py::arg("x"), "alpha * x + linear(input)")
      .def("logits", &OpsDevice::logits, py::arg("x"), py::arg("rows"), py::arg("norm"),
           py::arg("head"))
      .def("attend", &attend, py::arg("qkv"), py::arg("sequences"), py::arg("kv"), py::arg("layer"),
           py::arg("heads"), py::arg("scale"), py::arg("rope"), py::arg("sliding_window") = 0,
           py::arg("bidirectional_prompt") = false,
           "rope_append_attend; sequences: (past, count, prompt_len, blocks) each.");
  bind_sampling(m);
  bind_upload(m);
}
