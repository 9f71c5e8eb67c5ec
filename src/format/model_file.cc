#include <filesystem>

#include "format/readers.h"
#include "slicellm/error.h"
#include "slicellm/format.h"

namespace slicellm {

std::shared_ptr<const ModelFile> open_model_file(const std::string& path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) {
    throw Error(ErrorKind::io, "model", "no file or directory at " + path,
                "a .flm file or a model directory");
  }
  if (std::filesystem::is_directory(status)) return open_model_directory(path);
  return open_flm(path);
}

}  // namespace slicellm
