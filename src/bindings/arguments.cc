#include "bindings/arguments.h"

#include <limits>

#include "slicellm/error.h"

namespace slicellm {
namespace {

[[noreturn]] void refuse(const char* field, const py::handle& value, const std::string& expected) {
  throw Error(ErrorKind::invalid_argument, field, describe(value), expected);
}

// An int, or anything that acts as one (numpy integers), but no bool.
bool is_int(const py::handle& value) {
  return !PyBool_Check(value.ptr()) && PyIndex_Check(value.ptr()) &&
         !py::isinstance<py::array>(value);
}

py::object as_python_int(const py::handle& value) {
  PyObject* index = PyNumber_Index(value.ptr());
  if (!index) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(index);
}

bool is_sequence(const py::handle& value) {
  return PySequence_Check(value.ptr()) && !PyUnicode_Check(value.ptr()) &&
         !PyBytes_Check(value.ptr()) && !PyByteArray_Check(value.ptr());
}

constexpr const char* kIds = "a sequence of token ids, integers from 0 to 2147483647";
constexpr int32_t kMaxId = std::numeric_limits<int32_t>::max();

}  // namespace

std::string describe(const py::handle& value) {
  PyObject* repr = PyObject_Repr(value.ptr());
  if (!repr) {  // e.g. an int of more digits than Python prints
    PyErr_Clear();
    return std::string("a ") + Py_TYPE(value.ptr())->tp_name;
  }
  py::object owned = py::reinterpret_steal<py::object>(repr);
  Py_ssize_t size = 0;
  const char* text = PyUnicode_AsUTF8AndSize(repr, &size);
  if (!text) {
    PyErr_Clear();
    return std::string("a ") + Py_TYPE(value.ptr())->tp_name;
  }
  if (size <= 60) return std::string(text, static_cast<size_t>(size));
  size = 57;
  while (size > 0 && (static_cast<unsigned char>(text[size]) & 0xC0) == 0x80) --size;
  return std::string(text, static_cast<size_t>(size)) + "...";
}

int64_t to_int(const py::handle& value, const char* field, int64_t low, int64_t high,
               const char* expected) {
  if (!is_int(value)) refuse(field, value, expected);
  int overflow = 0;
  const long long number = PyLong_AsLongLongAndOverflow(as_python_int(value).ptr(), &overflow);
  if (overflow != 0 || number < low || number > high) refuse(field, value, expected);
  return number;
}

uint64_t to_uint64(const py::handle& value, const char* field) {
  constexpr const char* expected = "an integer from 0 to 2^64 - 1";
  if (!is_int(value)) refuse(field, value, expected);
  const unsigned long long number = PyLong_AsUnsignedLongLong(as_python_int(value).ptr());
  if (PyErr_Occurred()) {
    PyErr_Clear();
    refuse(field, value, expected);
  }
  return number;
}

double to_number(const py::handle& value, const char* field) {
  const PyNumberMethods* methods = Py_TYPE(value.ptr())->tp_as_number;
  const bool numeric = PyFloat_Check(value.ptr()) || is_int(value) ||
                       (methods && methods->nb_float && !PyBool_Check(value.ptr()) &&
                        !py::isinstance<py::array>(value));
  if (!numeric) refuse(field, value, "a number");
  const double number = PyFloat_AsDouble(value.ptr());
  if (PyErr_Occurred()) {
    PyErr_Clear();
    refuse(field, value, "a number that fits a double");
  }
  return number;
}

bool to_bool(const py::handle& value, const char* field) {
  if (!PyBool_Check(value.ptr())) refuse(field, value, "True or False");
  return value.ptr() == Py_True;
}

std::string to_text(const py::handle& value, const char* field) {
  if (!PyUnicode_Check(value.ptr())) refuse(field, value, "a string");
  Py_ssize_t size = 0;
  const char* text = PyUnicode_AsUTF8AndSize(value.ptr(), &size);
  if (!text) {
    PyErr_Clear();
    refuse(field, value, "a string that UTF-8 can encode");
  }
  return std::string(text, static_cast<size_t>(size));
}

std::optional<double> to_seconds(const py::handle& milliseconds, const char* field) {
  if (milliseconds.is_none()) return std::nullopt;
  return to_number(milliseconds, field) / 1000;
}

std::vector<int32_t> to_ids(const py::handle& value, const char* field) {
  std::vector<int32_t> ids;
  if (py::isinstance<py::array>(value)) {
    auto array = py::reinterpret_borrow<py::array>(value);
    const char kind = array.dtype().kind();
    if (array.ndim() != 1 || (kind != 'i' && kind != 'u')) refuse(field, value, kIds);
    auto list = py::reinterpret_steal<py::list>(PySequence_List(value.ptr()));
    return to_ids(list, field);
  }
  if (!is_sequence(value)) refuse(field, value, kIds);
  auto sequence = py::reinterpret_borrow<py::sequence>(value);
  ids.reserve(sequence.size());
  for (py::handle id : sequence) {
    ids.push_back(static_cast<int32_t>(to_int(id, field, 0, kMaxId, kIds)));
  }
  return ids;
}

std::vector<std::string> to_texts(const py::handle& value, const char* field) {
  if (!is_sequence(value)) refuse(field, value, "a sequence of strings");
  std::vector<std::string> texts;
  for (py::handle text : py::reinterpret_borrow<py::sequence>(value)) {
    texts.push_back(to_text(text, field));
  }
  return texts;
}

}  // namespace slicellm
