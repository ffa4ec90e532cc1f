#include "convert.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <utility>

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

// Kind and size instead of the type number: int64 has two numbers on some platforms.
bool has_dtype(const py::array& array, Dtype dtype) {
  const py::dtype given = array.dtype();
  const char order = given.byteorder();
  return given.kind() == kind_of(dtype) && static_cast<std::size_t>(given.itemsize()) == size_of(dtype) &&
         (order == '=' || order == '|');
}

// Whether the axes are [rows,] [stack,] shape…; `rows` only where it is given.
bool has_shape(const py::array& array, const Field& field, std::optional<std::size_t> rows) {
  const std::size_t leading = (rows ? 1U : 0U) + (field.stack > 1 ? 1U : 0U);
  if (static_cast<std::size_t>(array.ndim()) != leading + field.shape.size()) return false;
  const py::ssize_t* lengths = array.shape();
  if (rows && static_cast<std::size_t>(*lengths++) != *rows) return false;
  if (field.stack > 1 && static_cast<std::size_t>(*lengths++) != field.stack) return false;
  for (const std::size_t length : field.shape) {
    if (static_cast<std::size_t>(*lengths++) != length) return false;
  }
  return true;
}

bool is_c_order(const py::array& array) { return (array.flags() & py::array::c_style) != 0; }

template <typename T>
bool put(std::uint64_t& number, T value) {
  std::memcpy(&number, &value, sizeof(value));
  return true;
}

// A Python bool, int or float without loss; false leaves it to the caller to convert or to complain.
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

}  // namespace

bool Row::take(std::size_t index, const Field& field, py::handle value) {
  if (py::isinstance<py::array>(value)) {
    const auto array = py::reinterpret_borrow<py::array>(value);
    if (!has_dtype(array, field.dtype) || !has_shape(array, field, std::nullopt) || !is_c_order(array))
      return false;
    pointers[index] = static_cast<const std::byte*>(array.data());
    return true;
  }
  if (!field.shape.empty() || field.stack > 1 || !put_number(numbers[index], field.dtype, value))
    return false;
  pointers[index] = reinterpret_cast<const std::byte*>(&numbers[index]);
  return true;
}

std::byte* rows_of(py::handle value, const Field& field, std::size_t rows, bool writable) {
  const std::string name = "field '" + field.name + "'";
  if (!py::isinstance<py::array>(value)) throw py::type_error(name + " must be a NumPy array");
  const auto array = py::reinterpret_borrow<py::array>(value);
  if (!has_dtype(array, field.dtype)) {
    throw py::type_error(name + " has dtype " + std::string(py::str(array.dtype())) + "; the store holds " +
                         std::string(name_of(field.dtype)));
  }
  if (!has_shape(array, field, rows)) {
    std::vector<std::size_t> wanted = field.row_shape();
    wanted.insert(wanted.begin(), rows);
    const std::vector<std::size_t> given(array.shape(), array.shape() + array.ndim());
    throw py::value_error(name + " has shape " + shape_text(given) + "; it must be " + shape_text(wanted));
  }
  if (!is_c_order(array)) throw py::value_error(name + " is not C-contiguous");
  if (writable && !array.writeable()) throw py::value_error(name + " is read-only");
  return static_cast<std::byte*>(const_cast<void*>(array.data()));
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
