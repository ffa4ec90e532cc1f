// The Python module serl_fast.replay._native: converts, releases the GIL, delegates. Names, defaults and
// conversions that are not free live in Python.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "convert.h"
#include "serl_fast/rng.h"
#include "serl_fast/store.h"

namespace serl_fast::bindings {
namespace {

using FieldTuple = std::tuple<std::string, std::string, std::vector<std::size_t>, std::size_t>;

Schema make_schema(const std::vector<FieldTuple>& observations, const std::vector<FieldTuple>& steps) {
  const auto make_fields = [](const std::vector<FieldTuple>& tuples) {
    std::vector<Field> fields;
    for (const auto& [name, dtype, shape, stack] : tuples) {
      fields.push_back(Field{name, dtype_from_name(dtype), shape, stack});
    }
    return fields;
  };
  return Schema{make_fields(observations), make_fields(steps)};
}

Continues to_continues(py::handle value) {
  if (value.is_none()) return Continues::kDecide;
  py::detail::make_caster<bool> caster;
  if (!caster.load(value, /*convert=*/false)) throw py::type_error("continues is None, True or False");
  return static_cast<bool>(caster) ? Continues::kYes : Continues::kNo;
}

class PyStore {
 public:
  PyStore(const std::vector<FieldTuple>& observations, const std::vector<FieldTuple>& steps,
          std::size_t capacity, std::uint64_t seed)
      : store(make_schema(observations, steps), capacity, seed) {
    for (std::size_t i = 0; i < store.schema().columns_out(); ++i)
      columns_.push_back(store.schema().column(i));
  }

  bool try_append(const py::list& values, py::handle continues) {
    const std::size_t count = store.schema().columns_in();
    require_count(values.size(), count);
    Row row(count);
    for (std::size_t i = 0; i < count; ++i) {
      if (!row.take(i, columns_[i], PyList_GET_ITEM(values.ptr(), static_cast<py::ssize_t>(i)))) return false;
    }
    const Continues wish = to_continues(continues);
    const py::gil_scoped_release release;
    store.append(row.pointers, 1, std::span(&wish, 1));
    return true;
  }

  void extend(const py::list& values, std::size_t rows, const std::vector<std::int8_t>& continues) {
    const std::vector<std::byte*> data = pointers(values, store.schema().columns_in(), rows, false);
    std::vector<Continues> wishes;
    for (const std::int8_t wish : continues) wishes.push_back(static_cast<Continues>(wish));
    const std::vector<const std::byte*> columns(data.begin(), data.end());
    const py::gil_scoped_release release;
    store.append(columns, rows, wishes);
  }

  void sample(const py::list& out, std::size_t rows, float discount) {
    const std::vector<std::byte*> columns = pointers(out, columns_.size(), rows, true);
    const py::gil_scoped_release release;
    store.sample(rows, discount, columns);
  }

  void gather(const py::array_t<std::int64_t, py::array::c_style>& ages, const py::list& out,
              float discount) const {
    const auto rows = static_cast<std::size_t>(ages.size());
    const std::vector<std::byte*> columns = pointers(out, columns_.size(), rows, true);
    const std::span<const std::int64_t> indices(ages.data(), rows);
    const py::gil_scoped_release release;
    store.gather(indices, discount, columns);
  }

  py::dict state() const {
    State state = [this] {
      const py::gil_scoped_release release;
      return store.state();
    }();
    py::list records;
    for (std::size_t f = 0; f < state.record_columns.size(); ++f) {
      const Field& field = store.schema().observations[f];
      records.append(
          to_array(std::move(state.record_columns[f]), field.dtype, rows_of_shape(state.records, field)));
    }
    py::list steps;
    for (std::size_t f = 0; f < state.step_columns.size(); ++f) {
      const Field& field = store.schema().steps[f];
      steps.append(
          to_array(std::move(state.step_columns[f]), field.dtype, rows_of_shape(state.steps, field)));
    }
    py::dict result;
    result["continues"] = to_array(std::move(state.continues), Dtype::kBool, {state.steps});
    result["records"] = records;
    result["steps"] = steps;
    result["seed"] = state.seed;
    result["draws"] = state.draws;
    result["appended"] = state.appended;
    return result;
  }

  void load(const py::array& continues, const py::list& records, const py::list& steps, std::uint64_t seed,
            std::uint64_t draws, std::uint64_t appended) {
    const Schema& schema = store.schema();
    require_count(records.size(), schema.observations.size());
    require_count(steps.size(), schema.steps.size());
    StateView view;
    view.steps = leading_axis(continues);
    view.records = leading_axis(records[0]);
    view.continues = rows_of(continues, Field{"continues", Dtype::kBool, {}, 1}, view.steps, false);
    for (std::size_t f = 0; f < schema.observations.size(); ++f) {
      Field frame = schema.observations[f];
      frame.stack = 1;
      view.record_columns.push_back(rows_of(records[f], frame, view.records, false));
    }
    for (std::size_t f = 0; f < schema.steps.size(); ++f) {
      view.step_columns.push_back(rows_of(steps[f], schema.steps[f], view.steps, false));
    }
    view.seed = seed;
    view.draws = draws;
    view.appended = appended;
    const py::gil_scoped_release release;
    store.load(view);
  }

  std::size_t bytes_used() const {
    const py::gil_scoped_release release;
    return store.bytes_used();
  }

  Store store;

 private:
  static void require_count(std::size_t given, std::size_t wanted) {
    if (given == wanted) return;
    throw Error("got " + std::to_string(given) + " columns; the store has " + std::to_string(wanted));
  }

  static std::size_t leading_axis(py::handle value) {
    const auto array = py::cast<py::array>(value);
    return array.ndim() == 0 ? 0 : static_cast<std::size_t>(array.shape(0));
  }

  static std::vector<std::size_t> rows_of_shape(std::size_t rows, const Field& field) {
    std::vector<std::size_t> shape = field.shape;
    shape.insert(shape.begin(), rows);
    return shape;
  }

  std::vector<std::byte*> pointers(const py::list& values, std::size_t count, std::size_t rows,
                                   bool writable) const {
    require_count(values.size(), count);
    std::vector<std::byte*> result(count);
    for (std::size_t i = 0; i < count; ++i) result[i] = rows_of(values[i], columns_[i], rows, writable);
    return result;
  }

  std::vector<Field> columns_;  // of a batch; the first columns_in() of them are those of an append
};

py::array_t<std::uint64_t> sample_indices(std::uint64_t seed, std::uint64_t draw, std::uint64_t bound,
                                          std::size_t count) {
  if (bound == 0) throw Error("the bound is 0; there is nothing to draw from");
  py::array_t<std::uint64_t> result(static_cast<py::ssize_t>(count));
  uniform_indices(seed, draw, bound, std::span(result.mutable_data(), count));
  return result;
}

}  // namespace
}  // namespace serl_fast::bindings

PYBIND11_MODULE(_native, module) {
  namespace py = pybind11;
  using serl_fast::bindings::PyStore;

  module.doc() = "The replay store's C++ core; use serl_fast.replay.";
  // serl_fast::Error is a std::invalid_argument, which pybind11 raises as ValueError.
  py::class_<PyStore>(module, "Store")
      .def(py::init<const std::vector<serl_fast::bindings::FieldTuple>&,
                    const std::vector<serl_fast::bindings::FieldTuple>&, std::size_t, std::uint64_t>(),
           py::arg("observations"), py::arg("steps"), py::arg("capacity"), py::arg("seed"))
      .def("try_append", &PyStore::try_append, py::arg("values"), py::arg("continues"))
      .def("extend", &PyStore::extend, py::arg("columns"), py::arg("rows"), py::arg("continues"))
      .def("sample", &PyStore::sample, py::arg("out"), py::arg("rows"), py::arg("discount"))
      .def("gather", &PyStore::gather, py::arg("ages"), py::arg("out"), py::arg("discount"))
      .def("state", &PyStore::state)
      .def("load", &PyStore::load, py::arg("continues"), py::arg("records"), py::arg("steps"),
           py::arg("seed"), py::arg("draws"), py::arg("appended"))
      .def("__len__", [](const PyStore& self) { return self.store.size(); })
      .def_property_readonly("capacity", [](const PyStore& self) { return self.store.capacity(); })
      .def_property_readonly("appended", [](const PyStore& self) { return self.store.appended(); })
      .def_property_readonly("bytes_used", &PyStore::bytes_used)
      .def_property(
          "seed", [](const PyStore& self) { return self.store.seed(); },
          [](PyStore& self, std::uint64_t seed) { self.store.set_seed(seed); })
      .def_property(
          "draws", [](const PyStore& self) { return self.store.draws(); },
          [](PyStore& self, std::uint64_t draws) { self.store.set_draws(draws); });

  module.def(
      "philox4x32",
      [](std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key) {
        return serl_fast::philox4x32(counter, key);
      },
      py::arg("counter"), py::arg("key"));
  module.def("uniform_indices", &serl_fast::bindings::sample_indices, py::arg("seed"), py::arg("draw"),
             py::arg("bound"), py::arg("count"));
}
