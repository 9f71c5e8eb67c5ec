#include <memory>
#include <optional>
#include <unordered_map>

#include "format/export_plan.h"
#include "format/stack_rows.h"
#include "slicellm/error.h"
#include "slicellm/format.h"

namespace slicellm {
namespace {

RowRange read_rows(const ModelFile& file, const ExportTensor::Source& source) {
  RowRange range{std::make_shared<const Weight>(file.weight(source.name)), source.begin,
                 source.end};
  if (range.end == 0) range.end = range.weight->shape[0];
  return range;
}

uint64_t bytes_of(const RowRange& range) {
  const auto rows = static_cast<uint64_t>(range.weight->shape[0]);
  return range.weight->data_bytes / rows * static_cast<uint64_t>(range.end - range.begin);
}

Weight make_tensor(const ModelFile& file, const ExportTensor& tensor, const ExportRequest& request,
                   uint64_t& done) {
  std::vector<RowRange> parts;
  for (const ExportTensor::Source& source : tensor.sources) {
    parts.push_back(read_rows(file, source));
    done += bytes_of(parts.back());
    std::optional<DTypeSpec> wanted;
    if (tensor.role == ExportTensor::Role::linear) wanted = request.dtype;
    if (tensor.role == ExportTensor::Role::other) wanted = DTypeSpec{DType::float32, 0};
    if (wanted) {
      auto& w = parts.back().weight;
      w = std::make_shared<const Weight>(convert(*w, *wanted, request.threads));
    }
  }
  return stack_rows(tensor.name, parts);
}

}  // namespace

void export_model(const ExportRequest& request, const Progress& progress) {
  const auto file = open_model_file(request.path);
  const bool to_flm = request.output.ends_with(".flm");
  std::unordered_map<std::string, ExportTensor> tensors;
  ModelWriteRequest write;
  uint64_t total = 0, done = 0;
  for (ExportTensor& tensor : plan_export(*file, to_flm)) {
    for (const auto& source : tensor.sources) total += bytes_of(read_rows(*file, source));
    write.names.push_back(tensor.name);
    tensors.emplace(tensor.name, std::move(tensor));
  }
  write.weight = [&](const std::string& name) {
    Weight w = make_tensor(*file, tensors.at(name), request, done);
    if (progress) progress(done, total);
    return w;
  };
  if (!to_flm) return write_export_dir(request.output, write, nullptr);
  write.config = flm_config(*file);
  for (const auto& [key, value] : request.extra_config.values) write.config.values[key] = value;
  write.vocab = request.vocab;
  write_flm(request.output, write, nullptr);
}

}  // namespace slicellm
