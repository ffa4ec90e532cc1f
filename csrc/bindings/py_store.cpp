#include "py_store.h"

#include <algorithm>
#include <array>
#include <limits>
#include <span>
#include <utility>

#include "without_lock.h"

namespace serl_fast::bindings {
namespace {

// Bytes of a row up to which an append keeps the interpreter lock; docs/design/0001-replay-store.md says what
// giving it away costs.
constexpr std::size_t kCopiedWithTheLock = 4096;

// Beyond this many columns a row goes the slow way in.
constexpr std::size_t kMostColumns = 64;

std::vector<std::string> names_in(const Schema& schema) {
  std::vector<std::string> names;
  for (std::size_t i = 0; i < schema.columns_in(); ++i) names.push_back(schema.column_in(i).name);
  return names;
}

Continues to_continues(PyObject* value) {
  if (value == nullptr || value == Py_None) return Continues::kDecide;
  if (value == Py_True) return Continues::kYes;
  if (value == Py_False) return Continues::kNo;
  py::detail::make_caster<bool> caster;  // a NumPy bool
  if (!caster.load(value, /*convert=*/false)) throw py::type_error("continues is None, True or False");
  return static_cast<bool>(caster) ? Continues::kYes : Continues::kNo;
}

void require_count(std::size_t given, std::size_t wanted) {
  if (given == wanted) return;
  throw Error("got " + std::to_string(given) + " columns; the store has " + std::to_string(wanted));
}

std::vector<std::size_t> rows_of_shape(std::size_t rows, const Field& field) {
  std::vector<std::size_t> shape = field.shape;
  shape.insert(shape.begin(), rows);
  return shape;
}

}  // namespace

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

PyStore::PyStore(std::unique_ptr<Store> made) : store(std::move(made)), tree_(names_in(store->schema())) {
  for (std::size_t i = 0; i < store->schema().columns_in(); ++i) {
    const Field field = store->schema().column_in(i);
    forms_.push_back(ArrayForm::of(field));
    row_bytes_ += field.row_bytes();
  }
}

bool PyStore::try_append(PyObject* transition, PyObject* continues) {
  std::array<PyObject*, kMostColumns> values;
  return forms_.size() <= kMostColumns && tree_.read(transition, values.data()) &&
         !append_columns(values.data(), forms_.size(), continues);
}

std::optional<std::size_t> PyStore::append_columns(PyObject* const* values, std::size_t count,
                                                   PyObject* continues) {
  std::array<const std::byte*, kMostColumns> pointers;
  std::array<std::uint64_t, kMostColumns> numbers;
  require_count(count, forms_.size());
  if (count > kMostColumns)
    throw Error("an appender takes at most " + std::to_string(kMostColumns) + " columns; use append()");
  for (std::size_t i = 0; i < count; ++i) {
    const ArrayForm& form = forms_[i];
    if (form.shape.empty() && put_number(numbers[i], form.dtype, values[i])) {
      pointers[i] = reinterpret_cast<const std::byte*>(&numbers[i]);
      continue;
    }
    pointers[i] = fast_data(values[i], form, std::nullopt);
    if (pointers[i] == nullptr) return i;
  }
  const Continues wish = to_continues(continues);
  const std::span columns(pointers.data(), count);
  if (row_bytes_ <= kCopiedWithTheLock && store->try_append(columns, wish)) return std::nullopt;
  const Held held(values, count);
  without_lock([&] { store->append(columns, 1, std::span(&wish, 1)); });
  return std::nullopt;
}

bool PyStore::try_extend(py::handle columns, const std::vector<std::int8_t>& continues) {
  std::vector<PyObject*> values(forms_.size());
  if (!tree_.read(columns.ptr(), values.data()) || !py::isinstance<py::array>(values[0])) return false;
  const auto* first = py::detail::array_proxy(values[0]);
  if (first->nd == 0) return false;
  const auto rows = static_cast<std::size_t>(first->dimensions[0]);
  std::vector<const std::byte*> data(forms_.size());
  for (std::size_t i = 0; i < forms_.size(); ++i) {
    data[i] = fast_data(values[i], forms_[i], rows);
    if (data[i] == nullptr) return false;
  }
  const Held held(values.data(), values.size());
  store_rows(data, rows, continues);
  return true;
}

void PyStore::extend(const py::list& values, std::size_t rows, const std::vector<std::int8_t>& continues) {
  require_count(values.size(), forms_.size());
  std::vector<const std::byte*> columns;
  for (std::size_t i = 0; i < forms_.size(); ++i)
    columns.push_back(rows_of(values[i], forms_[i], rows, false));
  store_rows(columns, rows, continues);
}

void PyStore::store_rows(const std::vector<const std::byte*>& columns, std::size_t rows,
                         const std::vector<std::int8_t>& continues) {
  std::vector<Continues> wishes;
  for (const std::int8_t wish : continues) wishes.push_back(static_cast<Continues>(wish));
  without_lock([&] { store->append(columns, rows, wishes); });
}

std::size_t PyStore::relabel(std::size_t field, const py::array_t<std::int64_t, py::array::c_style>& ids,
                             py::handle values) {
  const std::span<const std::int64_t> numbers(ids.data(), static_cast<std::size_t>(ids.size()));
  const std::byte* data =
      rows_of(values, ArrayForm::of(store->schema().steps.at(field)), numbers.size(), false);
  return without_lock([&] { return store->relabel(field, numbers, data); });
}

std::size_t PyStore::update_priorities(const py::array_t<std::int64_t, py::array::c_style>& ids,
                                       const py::array_t<float, py::array::c_style>& priorities) {
  if (ids.size() != priorities.size()) {
    throw Error("got " + std::to_string(priorities.size()) + " priorities for " + std::to_string(ids.size()) +
                " ids");
  }
  const std::span<const std::int64_t> numbers(ids.data(), static_cast<std::size_t>(ids.size()));
  const std::span<const float> errors(priorities.data(), numbers.size());
  return without_lock([&] { return store->update_priorities(numbers, errors); });
}

py::dict PyStore::state() const {
  State state = without_lock([this] { return store->state(); });
  py::list records;
  for (std::size_t f = 0; f < state.record_columns.size(); ++f) {
    const Field& field = store->schema().observations[f];
    records.append(
        to_array(std::move(state.record_columns[f]), field.dtype, rows_of_shape(state.records, field)));
  }
  py::list steps;
  for (std::size_t f = 0; f < state.step_columns.size(); ++f) {
    const Field& field = store->schema().steps[f];
    steps.append(to_array(std::move(state.step_columns[f]), field.dtype, rows_of_shape(state.steps, field)));
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

void PyStore::load(const py::array& continues, const py::list& records, const py::list& steps,
                   std::uint64_t seed, std::uint64_t draws, std::uint64_t appended) {
  const Schema& schema = store->schema();
  require_count(records.size(), schema.observations.size());
  require_count(steps.size(), schema.steps.size());
  StateView view;
  view.steps = leading_axis(continues, "continues");
  view.records = leading_axis(records[0], schema.observations[0].name);
  view.continues = rows_of(continues, ArrayForm{"continues", Dtype::kBool, {}}, view.steps, false);
  for (std::size_t f = 0; f < schema.observations.size(); ++f) {
    const Field& field = schema.observations[f];  // a record holds one frame of a stack
    const ArrayForm form{field.name, field.dtype, field.shape};
    view.record_columns.push_back(rows_of(records[f], form, view.records, false));
  }
  for (std::size_t f = 0; f < schema.steps.size(); ++f) {
    view.step_columns.push_back(rows_of(steps[f], ArrayForm::of(schema.steps[f]), view.steps, false));
  }
  view.seed = seed;
  view.draws = draws;
  view.appended = appended;
  without_lock([&] { store->load(view); });
}

py::tuple PyStore::copy_steps(std::uint64_t first, const py::array& continues, const py::list& records,
                              const py::list& steps) const {
  const Schema& schema = store->schema();
  require_count(records.size(), schema.observations.size());
  require_count(steps.size(), schema.steps.size());
  StateSpace to;
  to.steps = leading_axis(continues, "continues");
  to.records = std::numeric_limits<std::size_t>::max();
  to.continues = rows_of(continues, ArrayForm{"continues", Dtype::kBool, {}}, to.steps, true);
  for (const py::handle given : records) {
    if (!given.is_none()) to.records = std::min(to.records, leading_axis(given, "records"));
  }
  for (std::size_t f = 0; f < schema.observations.size(); ++f) {
    const Field& field = schema.observations[f];
    const ArrayForm form{field.name, field.dtype, field.shape};
    to.record_columns.push_back(records[f].is_none() ? nullptr : rows_of(records[f], form, to.records, true));
  }
  for (std::size_t f = 0; f < schema.steps.size(); ++f) {
    const ArrayForm form = ArrayForm::of(schema.steps[f]);
    to.step_columns.push_back(steps[f].is_none() ? nullptr : rows_of(steps[f], form, to.steps, true));
  }
  const Excerpt copied = without_lock([&] { return store->copy_steps(first, to); });
  return py::make_tuple(copied.first, copied.steps, copied.records);
}

// --- the calls of the actor's loop, without pybind11's dispatch, which costs more than the append
// ------------------

namespace {

// Not by py::cast, which looks the type up first.
PyStore& store_of(PyObject* self) {
  auto* instance = reinterpret_cast<py::detail::instance*>(self);
  return *static_cast<PyStore*>(py::detail::value_and_holder(instance, nullptr, 0, 0).value_ptr());
}

// As pybind11 would raise them.
PyObject* raise_current() {
  try {
    throw;
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const py::builtin_exception& error) {
    error.set_error();
  } catch (const FileError& error) {
    set_os_error(error);
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

PyObject* append_dict(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  try {
    if (count < 1 || count > 2) throw py::type_error("append takes a transition and continues");
    return PyBool_FromLong(store_of(self).try_append(args[0], count > 1 ? args[1] : nullptr));
  } catch (const std::exception&) {  // not an unwinding thread
    return raise_current();
  }
}

PyObject* append_columns(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  try {
    PyStore& store = store_of(self);
    if (const auto unfit = store.append_columns(args, static_cast<std::size_t>(count), nullptr)) {
      throw py::type_error(unfit_text(args[*unfit], store.form(*unfit)));
    }
    Py_RETURN_NONE;
  } catch (const std::exception&) {  // not an unwinding thread
    return raise_current();
  }
}

PyMethodDef append_dict_def = {"try_append",
                               reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(append_dict)),
                               METH_FASTCALL, "Append a transition; False where it must be converted first."};
PyMethodDef append_columns_def = {"append",
                                  reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(append_columns)),
                                  METH_FASTCALL, "Append one transition given column by column."};

// The function keeps the store alive.
py::object make_function(const py::object& self, PyMethodDef& definition) {
  PyObject* function = PyCFunction_New(&definition, self.ptr());
  if (function == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(function);
}

}  // namespace

void bind_store(py::module_& module) {
  // serl_fast::Error is a std::invalid_argument, which pybind11 raises as ValueError.
  py::class_<PyStore>(module, "Store")
      .def(py::init([](const std::vector<FieldTuple>& observations, const std::vector<FieldTuple>& steps,
                       std::size_t capacity, std::uint64_t seed) {
             return std::make_unique<PyStore>(
                 std::make_unique<Store>(make_schema(observations, steps), capacity, seed));
           }),
           py::arg("observations"), py::arg("steps"), py::arg("capacity"), py::arg("seed"))
      .def("appender_of_dicts", [](const py::object& self) { return make_function(self, append_dict_def); })
      .def("appender_of_columns",
           [](const py::object& self) { return make_function(self, append_columns_def); })
      .def("try_extend", &PyStore::try_extend, py::arg("columns"), py::arg("continues"))
      .def("extend", &PyStore::extend, py::arg("columns"), py::arg("rows"), py::arg("continues"))
      .def("relabel", &PyStore::relabel, py::arg("field"), py::arg("ids"), py::arg("values"))
      .def(
          "prioritize",
          [](PyStore& self, double alpha, double epsilon) {
            without_lock([&] { self.store->prioritize({alpha, epsilon}); });
          },
          py::arg("alpha"), py::arg("epsilon"))
      .def("update_priorities", &PyStore::update_priorities, py::arg("ids"), py::arg("priorities"))
      .def("episode_starts",
           [](const PyStore& self) {
             const Reading reading = self.store->reading();
             const std::vector<std::int64_t> starts = self.store->episode_starts(reading);
             const py::array_t<std::int64_t> ages(static_cast<py::ssize_t>(starts.size()), starts.data());
             return py::make_tuple(reading.begin(), reading.end(), ages);
           })
      .def("state", &PyStore::state)
      .def("load", &PyStore::load, py::arg("continues"), py::arg("records"), py::arg("steps"),
           py::arg("seed"), py::arg("draws"), py::arg("appended"))
      .def("copy_steps", &PyStore::copy_steps, py::arg("first"), py::arg("continues"), py::arg("records"),
           py::arg("steps"))
      .def("__len__", [](const PyStore& self) { return self.store->size(); })
      .def_property_readonly("capacity", [](const PyStore& self) { return self.store->capacity(); })
      .def_property_readonly("appended", [](const PyStore& self) { return self.store->appended(); })
      .def_property_readonly("first_id", [](const PyStore& self) { return self.store->first_id(); })
      .def_property_readonly("bytes_used", [](const PyStore& self) { return self.store->bytes_used(); })
      .def_property(
          "seed", [](const PyStore& self) { return self.store->seed(); },
          [](PyStore& self, std::uint64_t seed) { self.store->set_seed(seed); })
      .def_property(
          "draws", [](const PyStore& self) { return self.store->draws(); },
          [](PyStore& self, std::uint64_t draws) { self.store->set_draws(draws); });
}

}  // namespace serl_fast::bindings
