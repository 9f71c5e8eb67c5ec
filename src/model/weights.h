#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "model/family.h"
#include "model/pack_cache.h"
#include "slicellm/model.h"

namespace slicellm {

// About what weights take on a device, told from their shapes: a linear's, an embedding table's.
uint64_t device_bytes(const ModelFile& file, const LinearSource& source,
                      const ModelOptions& options);
uint64_t device_bytes(const ModelFile& file, const std::string& embedding);

// Takes weights from a file to devices: checks every shape against what the spec asks for, brings
// rows into the order of the forward pass, converts Hugging Face input to the asked dtype, and
// packs. Weights are views of the file's mapping and converted one linear layer at a time, so a
// model is never held twice. All errors name the tensor.
class WeightLoader {
 public:
  // With a `cache`, linears come from there and no more than norms from the file.
  WeightLoader(const ModelFile& file, const ModelOptions& options, const ModelLayout& layout,
               PackCache* cache);

  // `gated`: see Device::pack.
  std::unique_ptr<PackedLinear> linear(Device& device, const LinearSource& source, bool gated);
  std::unique_ptr<PackedNorm> norm(Device& device, const std::string& name, const ModelSpec& spec);
  std::unique_ptr<EmbeddingTable> embedding(Device& device, const std::string& name,
                                            const ModelSpec& spec);

  // "name dtype[/group] rows x cols;" of everything loaded so far: what a fingerprint hashes.
  const std::string& inventory() const { return cache_ ? cache_->inventory() : inventory_; }

 private:
  std::unique_ptr<PackedLinear> cached_linear(Device& device, const LinearSource& source,
                                              bool gated);
  Weight matrix(const std::string& name, int64_t rows, int64_t cols);
  std::vector<float> vector(const std::string& name, int64_t size);
  void note(const Weight& w);
  void advance(uint64_t bytes);

  const ModelFile& file_;
  const ModelOptions& options_;
  PackCache* cache_;
  uint64_t done_ = 0, total_ = 0;          // progress in bytes of the file (of the cache)
  std::optional<DTypeSpec> linear_dtype_;  // of the first linear layer
  std::string inventory_;
};

}  // namespace slicellm
