#include <algorithm>
#include <optional>
#include <thread>
#include <tuple>

#include "bindings/bindings.h"
#include "slicellm/error.h"
#include "slicellm/format.h"

namespace slicellm {
namespace {

Weight weight_from_numpy(const std::string& name, const py::array& array) {
  const bool is_half = array.dtype().kind() == 'f' && array.itemsize() == 2;
  const bool is_float = array.dtype().kind() == 'f' && array.itemsize() == 4;
  if (!is_half && !is_float) {
    throw Error(ErrorKind::invalid_argument, "array",
                "dtype " + py::cast<std::string>(py::str(array.dtype())), "float32 or float16");
  }
  if (array.ndim() < 1 || array.size() == 0) {
    throw Error(ErrorKind::invalid_argument, "array", "no elements or no dimensions",
                "at least one of each");
  }
  auto bytes = py::array::ensure(array, py::array::c_style);
  auto buffer = std::make_shared_for_overwrite<uint8_t[]>(static_cast<size_t>(bytes.nbytes()));
  std::copy_n(static_cast<const uint8_t*>(bytes.data()), bytes.nbytes(), buffer.get());
  Weight w;
  w.name = name;
  w.dtype = is_half ? DType::float16 : DType::float32;
  w.shape.assign(array.shape(), array.shape() + array.ndim());
  w.data = buffer.get();
  w.data_bytes = static_cast<size_t>(bytes.nbytes());
  w.owner = std::move(buffer);
  return w;
}

py::array_t<float> decode_to_numpy(const Weight& w) {
  py::array_t<float> out(std::vector<py::ssize_t>(w.shape.begin(), w.shape.end()));
  float* data = out.mutable_data();
  const int64_t count = out.size();
  py::gil_scoped_release release;
  decode(w, 0, count, data);
  return out;
}

py::array_t<float> to_numpy(const std::vector<float>& values) {
  return py::array_t<float>(static_cast<py::ssize_t>(values.size()), values.data());
}

py::list tokens_of(const ModelFile& file) {
  py::list result;
  for (const VocabToken& token : file.vocab().tokens) {
    result.append(py::make_tuple(py::bytes(token.bytes), token.id, token.score));
  }
  return result;
}

const char* kind_name(ModelFileKind kind) {
  switch (kind) {
    case ModelFileKind::flm:
      return "flm";
    case ModelFileKind::export_dir:
      return "export_dir";
    case ModelFileKind::hf_dir:
      return "hf_dir";
  }
  return "";
}

void bind_weight(py::module_& m) {
  py::class_<Weight>(m, "Weight",
                     "A tensor of a model file. Immutable; keeps the file mapped. `scale` and "
                     "`minimum` hold one float per row or group of a quantised tensor.")
      .def_static("from_numpy", &weight_from_numpy, py::arg("name"), py::arg("array"),
                  "A float32 or float16 tensor with a copy of `array`.")
      .def_readonly("name", &Weight::name)
      .def_property_readonly("dtype", [](const Weight& w) { return to_string(w.dtype); })
      .def_property_readonly("shape", [](const Weight& w) { return py::tuple(py::cast(w.shape)); })
      .def_readonly("group_size", &Weight::group_size)
      .def_property_readonly("scale", [](const Weight& w) { return to_numpy(w.scale); })
      .def_property_readonly("minimum", [](const Weight& w) { return to_numpy(w.minimum); })
      .def("decode", &decode_to_numpy, "The values as float32, of the tensor's shape.")
      .def(
          "convert",
          [](const Weight& w, const std::string& dtype, int threads) {
            const DTypeSpec to = parse_dtype(dtype);
            py::gil_scoped_release release;
            return convert(w, to, std::max(threads, 1));
          },
          py::arg("dtype"), py::arg("threads") = 1,
          "The tensor as another type, e.g. \"float16\", \"int8\", \"int4g32\".");
}

void bind_model_file(py::module_& m) {
  py::class_<ModelFile, std::shared_ptr<ModelFile>>(
      m, "ModelFile", "An opened model file or directory: configuration, vocabulary, weights.")
      .def_property_readonly("kind", [](const ModelFile& f) { return kind_name(f.kind()); })
      .def_property_readonly("path", &ModelFile::path)
      .def_property_readonly("version", &ModelFile::version)
      .def_property_readonly("config", [](const ModelFile& f) { return f.config().values; })
      .def_property_readonly("tokens", &tokens_of)
      .def_property_readonly("has_scores", [](const ModelFile& f) { return f.vocab().has_scores; })
      .def_property_readonly("special_tokens",
                             [](const ModelFile& f) { return f.vocab().special_tokens; })
      .def("names", &ModelFile::names)
      .def("__contains__", &ModelFile::contains)
      .def("weight", &ModelFile::weight, py::arg("name"));
  m.def(
      "open_model_file",
      [](const std::string& path) {
        py::gil_scoped_release release;
        return std::const_pointer_cast<ModelFile>(open_model_file(path));
      },
      py::arg("path"), "Opens a .flm file, an `ftllm export` directory or a Hugging Face one.");
}

Vocab make_vocab(const std::vector<std::tuple<py::bytes, int32_t, float>>& tokens, bool has_scores,
                 const std::vector<std::string>& special_tokens) {
  Vocab vocab;
  for (const auto& [bytes, id, score] : tokens) {
    vocab.tokens.push_back({std::string(bytes), id, score});
  }
  vocab.has_scores = has_scores;
  vocab.special_tokens = special_tokens;
  return vocab;
}

void bind_writers(py::module_& m) {
  using Tokens = std::vector<std::tuple<py::bytes, int32_t, float>>;
  using Values = std::map<std::string, std::string>;
  using GetWeight = std::function<Weight(const std::string&)>;
  m.def(
      "write_flm",
      [](const std::string& path, const Values& config, const Tokens& tokens, bool has_scores,
         const std::vector<std::string>& special_tokens, const std::vector<std::string>& names,
         const GetWeight& weight, const Progress& progress) {
        ModelWriteRequest request;
        request.config.values = config;
        request.vocab = make_vocab(tokens, has_scores, special_tokens);
        request.names = names;
        request.weight = weight;
        py::gil_scoped_release release;
        write_flm(path, request, progress);
      },
      py::arg("path"), py::arg("config"), py::arg("tokens"), py::arg("has_scores"),
      py::arg("special_tokens"), py::arg("names"), py::arg("weight"),
      py::arg("progress") = py::none(),
      "Writes a version 2 .flm; `weight` makes one tensor at a time, `progress` counts them.");
  m.def(
      "write_export_dir",
      [](const std::string& path, const std::vector<std::string>& names, const GetWeight& weight,
         const Progress& progress, uint64_t shard_bytes) {
        ModelWriteRequest request;
        request.names = names;
        request.weight = weight;
        request.shard_bytes = shard_bytes;
        py::gil_scoped_release release;
        write_export_dir(path, request, progress);
      },
      py::arg("path"), py::arg("names"), py::arg("weight"), py::arg("progress") = py::none(),
      py::arg("shard_bytes") = ModelWriteRequest().shard_bytes,
      "Writes the weights of a directory: safetensors, with fastllm's dtype for quantised ones.");
  m.def(
      "export_model",
      [](const std::string& path, const std::string& output,
         const std::optional<std::string>& dtype, const Values& extra_config, const Tokens& tokens,
         bool has_scores, const std::vector<std::string>& special_tokens, int threads,
         const Progress& progress) {
        ExportRequest request;
        request.path = path;
        request.output = output;
        if (dtype) request.dtype = parse_dtype(*dtype);
        request.extra_config.values = extra_config;
        request.vocab = make_vocab(tokens, has_scores, special_tokens);
        const int cores = static_cast<int>(std::thread::hardware_concurrency());
        request.threads = threads > 0 ? threads : std::max(cores, 1);
        py::gil_scoped_release release;
        export_model(request, progress);
      },
      py::arg("path"), py::arg("output"), py::arg("dtype"), py::arg("extra_config"),
      py::arg("tokens"), py::arg("has_scores"), py::arg("special_tokens"), py::arg("threads") = 0,
      py::arg("progress") = py::none(),
      "Converts a model file or directory; see slicellm.convert.export, which calls it.");
}

}  // namespace

void bind_format(py::module_& m) {
  bind_weight(m);
  bind_model_file(m);
  bind_writers(m);
  m.def(
      "parse_dtype",
      [](const std::string& text) {
        const DTypeSpec spec = parse_dtype(text);
        return py::make_tuple(to_string(spec.type), spec.group_size);
      },
      py::arg("text"), "(type, group size) of a type as the command line writes it.");
}

}  // namespace slicellm
