#include "slicellm/error.h"
#include "slicellm/ops.h"

namespace slicellm {

ActivationType parse_activation_type(std::string_view text) {
  if (text == "auto") return ActivationType::automatic;
  if (text == "float32") return ActivationType::float32;
  if (text == "int8") return ActivationType::int8;
  throw Error(ErrorKind::invalid_argument, "activation", '"' + std::string(text) + '"',
              "auto, float32 or int8");
}

}  // namespace slicellm
