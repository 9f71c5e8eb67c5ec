#pragma once

#include <memory>
#include <string>

#include "slicellm/format.h"

// The readers behind open_model_file, one per kind of file.
namespace slicellm {

std::shared_ptr<const ModelFile> open_flm(const std::string& path);
std::shared_ptr<const ModelFile> open_model_directory(const std::string& path);

}  // namespace slicellm
