#pragma once

#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

// One function a class, called by module.cc.
namespace slicellm {

namespace py = pybind11;

void bind_error(py::module_& m);
void bind_format(py::module_& m);
void bind_model(py::module_& m);
void bind_task(py::module_& m);
void bind_policy(py::module_& m);
void bind_mask_matrix(py::module_& m);
void bind_latency(py::module_& m);
void bind_engine(py::module_& m);
void bind_simulation(py::module_& m);

}  // namespace slicellm
