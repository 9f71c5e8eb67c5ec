#include <exception>

#include "bindings/bindings.h"
#include "slicellm/error.h"

namespace slicellm {
namespace {

// Python exception classes, kept alive by the module for the life of the interpreter.
struct ExceptionClasses {
  py::object base, invalid_argument, format, io, unsupported, resource, state;
};

ExceptionClasses* classes = nullptr;  // set once when the module is imported; never freed

py::object make_class(py::module_& m, const char* name, const char* doc, py::object base,
                      py::object builtin) {
  py::dict members;
  members["__module__"] = "slicellm";
  members["__doc__"] = doc;
  py::tuple bases = py::make_tuple(base, builtin);
  if (builtin.is_none()) bases = py::make_tuple(base);
  py::object type = py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(&PyType_Type));
  py::object result = type(name, bases, members);
  m.attr(name) = result;
  return result;
}

const py::object& class_of(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::invalid_argument:
      return classes->invalid_argument;
    case ErrorKind::format:
      return classes->format;
    case ErrorKind::io:
      return classes->io;
    case ErrorKind::unsupported:
      return classes->unsupported;
    case ErrorKind::resource:
      return classes->resource;
    case ErrorKind::state:
      return classes->state;
  }
  return classes->base;
}

}  // namespace

void bind_error(py::module_& m) {
  auto builtin = [](PyObject* type) { return py::reinterpret_borrow<py::object>(type); };
  classes = new ExceptionClasses;
  classes->base = make_class(m, "Error",
                             "Base of all errors of the core: `field`, `value`, `expected` say "
                             "what was wrong.",
                             builtin(PyExc_Exception), py::none());
  auto add = [&](const char* name, const char* doc, PyObject* type) {
    return make_class(m, name, doc, classes->base, builtin(type));
  };
  classes->invalid_argument =
      add("InvalidArgument", "An argument is out of its range.", PyExc_ValueError);
  classes->format = add("FormatError", "A file is not what its format says.", PyExc_ValueError);
  classes->io = add("IoError", "A file cannot be opened, read or written.", PyExc_OSError);
  classes->unsupported =
      add("Unsupported", "Valid, but not handled by this engine.", PyExc_NotImplementedError);
  classes->resource =
      add("ResourceError", "Memory, KV blocks or queue space are exhausted.", PyExc_RuntimeError);
  classes->state = add("StateError", "The call is not allowed now.", PyExc_RuntimeError);

  py::register_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const Error& e) {
      py::object error = class_of(e.kind())(e.what());
      error.attr("field") = e.field();
      error.attr("value") = e.value();
      error.attr("expected") = e.expected();
      PyErr_SetObject(class_of(e.kind()).ptr(), error.ptr());
    }
  });
}

}  // namespace slicellm
