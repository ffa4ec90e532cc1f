// The store and its samplers as Python objects: convert, release the interpreter lock, delegate.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "batch_form.h"
#include "convert.h"
#include "serl_fast/mapped_file.h"
#include "serl_fast/sampler.h"
#include "serl_fast/store.h"

namespace serl_fast::bindings {

using FieldTuple = std::tuple<std::string, std::string, std::vector<std::size_t>, std::size_t>;

Schema make_schema(const std::vector<FieldTuple>& observations, const std::vector<FieldTuple>& steps);

class PyStore {
 public:
  explicit PyStore(std::unique_ptr<Store> made);

  // One transition as a dict; false where it needs a conversion first (then nothing was stored).
  bool try_append(PyObject* transition, PyObject* continues);
  // The same, its columns one by one. Returns the first that does not fit; then nothing was stored.
  std::optional<std::size_t> append_columns(PyObject* const* values, std::size_t count, PyObject* continues);
  const ArrayForm& form(std::size_t column) const { return forms_[column]; }
  // Many transitions as a dict of columns, or (converted) as a list of them.
  bool try_extend(py::handle columns, const std::vector<std::int8_t>& continues);
  void extend(const py::list& values, std::size_t rows, const std::vector<std::int8_t>& continues);
  std::size_t relabel(std::size_t field, const py::array_t<std::int64_t, py::array::c_style>& ids,
                      py::handle values);
  std::size_t update_priorities(const py::array_t<std::int64_t, py::array::c_style>& ids,
                                const py::array_t<float, py::array::c_style>& priorities);
  py::dict state() const;
  void load(const py::array& continues, const py::list& records, const py::list& steps, std::uint64_t seed,
            std::uint64_t draws, std::uint64_t appended);
  py::tuple copy_steps(std::uint64_t first, const py::array& continues, const py::list& records,
                       const py::list& steps) const;

  const std::unique_ptr<Store> store;

 private:
  void store_rows(const std::vector<const std::byte*>& columns, std::size_t rows,
                  const std::vector<std::int8_t>& continues);

  const Tree tree_;               // of a transition
  std::vector<ArrayForm> forms_;  // of its columns
  std::size_t row_bytes_ = 0;     // of a transition, all columns
};

class PySampler {
 public:
  // `names`: per output column where it lies in a batch, empty where it is not wanted.
  PySampler(PyStore& store, const View& view, Order order, double beta,
            const std::vector<std::string>& names);

  // Fills a batch; false where it is not made of exactly the wanted arrays (then nothing was drawn).
  bool try_sample(py::handle batch);
  // The same from a list of arrays, None for columns that are not wanted; raises where one does not fit.
  void sample(const py::list& out, std::size_t rows);
  std::size_t sample_epoch(const py::list& out, std::size_t rows);
  // Rows by age, or by id.
  void gather(const py::array_t<std::int64_t, py::array::c_style>& places, bool are_ids,
              const py::list& out) const;

  Sampler sampler;

 private:
  const BatchForm form_;
};

// The Python error for what the system refused.
void set_os_error(const FileError& error);

void bind_store(py::module_& module);
void bind_files(py::module_& module);
void bind_sampler(py::module_& module);

}  // namespace serl_fast::bindings
