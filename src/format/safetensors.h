#pragma once

#include <memory>
#include <string>
#include <vector>

#include "format/fastllm_types.h"
#include "format/mapped_file.h"
#include "slicellm/tensor.h"

namespace slicellm {

// Most bytes of a header: the cap of the reference implementation.
constexpr uint64_t kMaxSafetensorsHeader = 100'000'000;

// One safetensors file, its header checked as a whole before anything is used: sizes match dtypes
// and shapes, and the tensors fill the data section one after another without gap or overlap.
// Tensors of dtype "fastllm" are fastllm's blobs. Immutable and thread-safe.
class SafetensorsFile {
 public:
  struct Tensor {
    std::string name;
    std::string dtype;  // as written: "F32", "F16", "BF16", "fastllm", ...
    std::vector<int64_t> shape;
    bool readable = false;  // whether `payload` is set; other dtypes are listed but not read
    TensorPayload payload;
  };

  // Throws Error(io | format | unsupported).
  explicit SafetensorsFile(const std::string& path);

  const std::vector<Tensor>& tensors() const { return tensors_; }  // in the order of their data
  bool has_blobs() const;
  const MappedFile& file() const { return *file_; }

  // Throws Error(unsupported) for dtypes that are not read, Error(format) for bad scales.
  Weight weight(const Tensor& tensor) const;

 private:
  std::shared_ptr<const MappedFile> file_;
  std::vector<Tensor> tensors_;
};

}  // namespace slicellm
