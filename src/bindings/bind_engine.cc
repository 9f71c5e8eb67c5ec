#include "bindings/bindings.h"
namespace slicellm {
void bind_engine(py::module_&) {}
}  // namespace slicellm
