#pragma once

#include <pybind11/pybind11.h>

namespace slicellm {

void bind_upload(pybind11::module_& m);

}  // namespace slicellm
