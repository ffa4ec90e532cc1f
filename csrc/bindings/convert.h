// Between NumPy arrays and the core's columns: nothing is copied except single numbers.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "serl_fast/column.h"
#include "serl_fast/field.h"

namespace serl_fast::bindings {

namespace py = pybind11;

// One transition as pointers into the caller's arrays. A Python number for a scalar field is converted into
// `numbers`, which is why the object may not be copied.
class Row {
 public:
  explicit Row(std::size_t columns) : pointers(columns), numbers(columns) {}
  Row(const Row&) = delete;
  Row& operator=(const Row&) = delete;

  // Takes `value` for column `index`; false where it does not have the stored layout (dtype, shape, C order).
  bool take(std::size_t index, const Field& field, py::handle value);

  std::vector<const std::byte*> pointers;

 private:
  std::vector<std::uint64_t> numbers;
};

// The data of an array that must hold exactly `rows` rows of `field`, native byte order, C order; raises a
// ValueError or TypeError that names the field. With `writable` the array must also be writable.
std::byte* rows_of(py::handle value, const Field& field, std::size_t rows, bool writable);

// An array over the column's memory, which it keeps alive.
py::array to_array(Column column, Dtype dtype, std::vector<std::size_t> shape);

// "(2, 3)", "(2,)", "()"
std::string shape_text(const std::vector<std::size_t>& shape);

}  // namespace serl_fast::bindings
