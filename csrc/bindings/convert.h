// Between NumPy arrays and the core's columns: nothing is copied except single numbers.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "serl_fast/column.h"
#include "serl_fast/field.h"

namespace serl_fast::bindings {

namespace py = pybind11;

// What an array of a column must look like. `rows`: whether it has a leading axis, of any length.
struct ArrayForm {
  ArrayForm(std::string name, Dtype dtype, std::vector<std::size_t> shape);

  std::string name;
  Dtype dtype;
  std::vector<std::size_t> shape;  // without the leading axis of rows
  const PyTypeObject* type;  // numpy.ndarray, and its one object for the native dtype: an array that has
  const PyObject* descr;     // both is one of this form at the cost of two comparisons

  static ArrayForm of(const Field& field) { return {field.name, field.dtype, field.row_shape()}; }
};

// Where `array` has exactly this form (native byte order, C order), its data; otherwise null. With `rows` the
// array has a leading axis of that length.
std::byte* fast_data(PyObject* array, const ArrayForm& form, std::optional<std::size_t> rows);

// What to say of a value that is neither such an array nor a number that such an array of shape () could
// hold.
std::string unfit_text(PyObject* value, const ArrayForm& form);

// The data of an array that must hold exactly `rows` rows of this form; raises a ValueError or TypeError that
// names the field. With `writable` the array must also be writable.
std::byte* rows_of(py::handle value, const ArrayForm& form, std::size_t rows, bool writable);

// The length of the leading axis; raises TypeError where `value` is no array with one.
std::size_t leading_axis(py::handle value, const std::string& name);

// A Python bool, int or float as the bytes of one number of `dtype`, in `number`; false where that would lose
// something or `value` is something else.
bool put_number(std::uint64_t& number, Dtype dtype, py::handle value);

// The arrays of a nested dict in the order of their names, "observations/front" meaning
// ["observations"]["front"]. An empty name stands for a column that is not there.
class Tree {
 public:
  explicit Tree(const std::vector<std::string>& names);

  // Puts a borrowed reference into `values` for every name that is not empty; false where `tree` is not a
  // dict of exactly these keys.
  bool read(PyObject* tree, PyObject** values) const { return read(root_, tree, values); }

 private:
  struct Node {
    py::str key;
    std::size_t column = 0;      // of a leaf
    std::vector<Node> children;  // of a dict
  };
  static bool read(const Node& node, PyObject* tree, PyObject** values);

  Node root_;
};

// References to objects that a Tree found, for as long as their memory is used without the interpreter lock:
// another thread may take them out of their dict meanwhile.
class Held {
 public:
  Held(PyObject* const* values, std::size_t count) {
    values_.reserve(count);
    for (std::size_t i = 0; i < count; ++i) values_.push_back(py::reinterpret_borrow<py::object>(values[i]));
  }

 private:
  std::vector<py::object> values_;
};

// An array over the column's memory, which it keeps alive.
py::array to_array(Column column, Dtype dtype, std::vector<std::size_t> shape);

// "(2, 3)", "(2,)", "()"
std::string shape_text(const std::vector<std::size_t>& shape);

}  // namespace serl_fast::bindings
