#include "convert.h"

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <utility>

#include "serl_fast/error.h"

namespace serl_fast::bindings {
namespace {

constexpr std::int64_t kExactInFloat = std::int64_t{1} << std::numeric_limits<float>::digits;

char kind_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::kUint8:
      return 'u';
    case Dtype::kFloat32:
      return 'f';
    case Dtype::kBool:
      return 'b';
    default:
      return 'i';
  }
}

const PyObject* native_descr(Dtype dtype) {
  static const auto descrs = [] {
    std::array<PyObject*, 5> made{};
    for (const Dtype each : {Dtype::kUint8, Dtype::kInt32, Dtype::kInt64, Dtype::kFloat32, Dtype::kBool}) {
      made.at(static_cast<std::size_t>(each)) = py::dtype(std::string(name_of(each))).release().ptr();
    }
    return made;
  }();
  return descrs.at(static_cast<std::size_t>(dtype));
}

// Kind and size instead of the type number: int64 has two numbers on some platforms. The machine's own byte
// order may also be named ('<f4'), as in arrays from files.
bool has_dtype(const py::array& array, Dtype dtype) {
  constexpr char kOwnOrder = std::endian::native == std::endian::little ? '<' : '>';
  const py::dtype given = array.dtype();
  const char order = given.byteorder();
  return given.kind() == kind_of(dtype) && static_cast<std::size_t>(given.itemsize()) == size_of(dtype) &&
         (order == '=' || order == '|' || order == kOwnOrder);
}

bool is_array_of(PyObject* value, Dtype dtype) {
  return py::isinstance<py::array>(value) && has_dtype(py::reinterpret_borrow<py::array>(value), dtype);
}

bool is_c_order(const py::array& array) { return (array.flags() & py::array::c_style) != 0; }

std::byte* data_of_shape(PyObject* value, const ArrayForm& form, std::optional<std::size_t> rows) {
  const auto* array = py::detail::array_proxy(value);
  const std::size_t leading = rows ? 1 : 0;
  if (static_cast<std::size_t>(array->nd) != leading + form.shape.size()) return nullptr;
  const Py_intptr_t* lengths = array->dimensions;
  if (rows && static_cast<std::size_t>(*lengths++) != *rows) return nullptr;
  for (const std::size_t length : form.shape) {
    if (static_cast<std::size_t>(*lengths++) != length) return nullptr;
  }
  if ((array->flags & py::array::c_style) == 0) return nullptr;
  return reinterpret_cast<std::byte*>(array->data);
}

std::string dtype_text(const py::array& array, Dtype dtype) {
  return " has dtype " + std::string(py::str(array.dtype())) + "; the store holds " +
         std::string(name_of(dtype));
}

std::vector<std::size_t> shape_of(const py::array& array) {
  return {array.shape(), array.shape() + array.ndim()};
}

template <typename T>
bool put(std::uint64_t& number, T value) {
  std::memcpy(&number, &value, sizeof(value));
  return true;
}

}  // namespace

ArrayForm::ArrayForm(std::string its_name, Dtype its_dtype, std::vector<std::size_t> its_shape)
    : name(std::move(its_name)),
      dtype(its_dtype),
      shape(std::move(its_shape)),
      type(py::detail::npy_api::get().PyArray_Type_),
      descr(native_descr(its_dtype)) {}

std::byte* fast_data(PyObject* value, const ArrayForm& form, std::optional<std::size_t> rows) {
  const bool is_plain = Py_TYPE(value) == form.type && py::detail::array_proxy(value)->descr == form.descr;
  if (is_plain || is_array_of(value, form.dtype)) return data_of_shape(value, form, rows);
  return nullptr;
}

std::string unfit_text(PyObject* value, const ArrayForm& form) {
  const std::string name = "field '" + form.name + "'";
  if (py::isinstance<py::array>(value)) {
    const auto array = py::reinterpret_borrow<py::array>(value);
    if (!has_dtype(array, form.dtype)) return name + dtype_text(array, form.dtype) + "; append() converts";
    if (const auto given = shape_of(array); given != form.shape) {
      return name + " has shape " + shape_text(given) + "; the store holds " + shape_text(form.shape);
    }
    return name + " is not C-contiguous; append() converts";
  }
  const bool is_number = PyFloat_Check(value) || PyLong_Check(value);
  const std::string given =
      is_number ? std::string(py::repr(value)) : std::string("a ") + Py_TYPE(value)->tp_name;
  const std::string dtype(name_of(form.dtype));
  std::string taken = "a " + dtype + " array of shape " + shape_text(form.shape);
  if (form.shape.empty())
    taken = form.dtype == Dtype::kBool ? "a bool" : "a number that " + dtype + " can hold";
  return name + " is " + given + "; the appender takes " + taken;
}

std::byte* rows_of(py::handle value, const ArrayForm& form, std::size_t rows, bool writable) {
  const std::string name = "field '" + form.name + "'";
  if (!py::isinstance<py::array>(value)) throw py::type_error(name + " must be a NumPy array");
  const auto array = py::reinterpret_borrow<py::array>(value);
  if (!has_dtype(array, form.dtype)) {
    throw py::type_error(name + dtype_text(array, form.dtype));
  }
  std::byte* data = fast_data(value.ptr(), form, rows);
  if (data == nullptr) {
    if (!is_c_order(array) && array.ndim() == static_cast<py::ssize_t>(form.shape.size() + 1)) {
      throw py::value_error(name + " is not C-contiguous");
    }
    std::vector<std::size_t> wanted = form.shape;
    wanted.insert(wanted.begin(), rows);
    throw py::value_error(name + " has shape " + shape_text(shape_of(array)) + "; it must be " +
                          shape_text(wanted));
  }
  if (writable && !array.writeable()) throw py::value_error(name + " is read-only");
  return data;
}

std::size_t leading_axis(py::handle value, const std::string& name) {
  if (!py::isinstance<py::array>(value) || py::reinterpret_borrow<py::array>(value).ndim() == 0) {
    throw py::type_error("field '" + name + "' must be a NumPy array with a leading batch axis");
  }
  return static_cast<std::size_t>(py::reinterpret_borrow<py::array>(value).shape(0));
}

bool put_number(std::uint64_t& number, Dtype dtype, py::handle value) {
  if (PyBool_Check(value.ptr())) {
    return dtype == Dtype::kBool && put(number, static_cast<std::uint8_t>(value.ptr() == Py_True));
  }
  if (PyFloat_Check(value.ptr()) && dtype == Dtype::kFloat32) {
    const double wide = PyFloat_AS_DOUBLE(value.ptr());
    const auto narrow = static_cast<float>(wide);
    return std::isfinite(narrow) == std::isfinite(wide) && put(number, narrow);
  }
  if (!PyLong_Check(value.ptr())) return false;
  int overflow = 0;
  const std::int64_t wide = PyLong_AsLongLongAndOverflow(value.ptr(), &overflow);
  if (overflow != 0) return false;
  switch (dtype) {
    case Dtype::kInt64:
      return put(number, wide);
    case Dtype::kInt32:
      return std::in_range<std::int32_t>(wide) && put(number, static_cast<std::int32_t>(wide));
    case Dtype::kUint8:
      return std::in_range<std::uint8_t>(wide) && put(number, static_cast<std::uint8_t>(wide));
    case Dtype::kFloat32:
      return wide >= -kExactInFloat && wide <= kExactInFloat && put(number, static_cast<float>(wide));
    default:
      return false;
  }
}

Tree::Tree(const std::vector<std::string>& names) {
  for (std::size_t column = 0; column < names.size(); ++column) {
    if (names[column].empty()) continue;
    Node* node = &root_;
    for (std::size_t from = 0; from != std::string::npos;) {
      const std::size_t to = names[column].find('/', from);
      const std::string key = names[column].substr(from, to == std::string::npos ? to : to - from);
      Node* child = nullptr;
      for (Node& known : node->children) {
        if (std::string(known.key) == key) child = &known;
      }
      if (child == nullptr) {
        node->children.push_back(Node{py::str(key), column, {}});
        child = &node->children.back();
        PyObject* interned = child->key.release().ptr();
        PyUnicode_InternInPlace(&interned);  // lookups then compare pointers
        child->key = py::reinterpret_steal<py::str>(interned);
      }
      node = child;
      from = to == std::string::npos ? to : to + 1;
    }
  }
}

bool Tree::read(const Node& node, PyObject* tree, PyObject** values) {
  if (!PyDict_CheckExact(tree)) return false;
  if (static_cast<std::size_t>(PyDict_GET_SIZE(tree)) != node.children.size()) return false;
  for (const Node& child : node.children) {
    PyObject* value = PyDict_GetItemWithError(tree, child.key.ptr());
    if (value == nullptr) {
      PyErr_Clear();
      return false;
    }
    if (child.children.empty()) {
      values[child.column] = value;
    } else if (!read(child, value, values)) {
      return false;
    }
  }
  return true;
}

py::array to_array(Column column, Dtype dtype, std::vector<std::size_t> shape) {
  auto owner = std::make_unique<Column>(std::move(column));
  std::byte* data = owner->data();
  const py::capsule keeper(owner.get(), [](void* memory) { delete static_cast<Column*>(memory); });
  owner.release();
  return py::array(py::dtype(std::string(name_of(dtype))), std::move(shape), data, keeper);
}

std::string shape_text(const std::vector<std::size_t>& shape) {
  std::string text = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(shape[i]);
  }
  text += shape.size() == 1 ? ",)" : ")";
  return text;
}

}  // namespace serl_fast::bindings
