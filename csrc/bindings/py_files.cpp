// Stores on disk.
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "py_store.h"
#include "serl_fast/files.h"

namespace serl_fast::bindings {
namespace {

std::vector<FieldTuple> tuples_of(const std::vector<Field>& fields) {
  std::vector<FieldTuple> tuples;
  for (const Field& field : fields) {
    tuples.emplace_back(field.name, std::string(name_of(field.dtype)), field.shape, field.stack);
  }
  return tuples;
}

Sync to_sync(const std::string& name) {
  if (name == "none") return Sync::kNone;
  if (name == "interval") return Sync::kInterval;
  if (name == "each") return Sync::kEach;
  throw Error("sync is '" + name + "'; it is 'none', 'interval' or 'each'");
}

using Fields = std::optional<std::pair<std::vector<FieldTuple>, std::vector<FieldTuple>>>;

std::unique_ptr<PyStore> open(const std::string& path, const Fields& fields, std::size_t capacity,
                              std::uint64_t seed, bool write, const std::string& sync, double sync_interval,
                              bool verify_all, bool skip_damaged, const std::string& note) {
  const OpenOptions options{.write = write,
                            .sync = to_sync(sync),
                            .sync_interval = sync_interval,
                            .verify_all = verify_all,
                            .damaged = skip_damaged ? OnDamage::kSkip : OnDamage::kRaise,
                            .seed = seed,
                            .note = note};
  std::optional<Schema> schema;
  if (fields) schema = make_schema(fields->first, fields->second);
  std::unique_ptr<Store> store;
  {
    const py::gil_scoped_release release;
    store = open_store(path, schema ? &*schema : nullptr, capacity, options);
  }
  return std::make_unique<PyStore>(std::move(store));
}

py::list verify(const PyStore& store, std::uint64_t first, std::uint64_t last) {
  std::vector<Damage> damages;
  {
    const py::gil_scoped_release release;
    damages = store.store->verify(first, last);
  }
  py::list found;
  for (const Damage& damage : damages) {
    found.append(py::make_tuple(damage.id, damage.file, damage.offset, damage.what));
  }
  return found;
}

py::dict inspect(const std::string& path) {
  const StoreInfo info = inspect_store(path);
  py::dict result;
  result["observations"] = tuples_of(info.header.schema.observations);
  result["steps"] = tuples_of(info.header.schema.steps);
  result["note"] = info.header.note;
  result["capacity"] = info.header.capacity;
  result["closed"] = info.header.closed;
  result["damage"] = info.damage;
  result["disk_bytes"] = info.disk_bytes;
  result["writer"] = info.writer;
  result["format"] = StoreHeader::kFormat;
  return result;
}

}  // namespace

void set_os_error(const FileError& error) {
  std::string message = error.what();
  const std::string start = error.path() + ": ";
  if (message.starts_with(start)) message.erase(0, start.size());
  // With a number as first argument Python makes FileNotFoundError, BlockingIOError, … of it.
  const py::object arguments = py::make_tuple(error.code(), message, error.path());
  PyErr_SetObject(PyExc_OSError, arguments.ptr());
}

void bind_files(py::module_& module) {
  py::register_exception_translator([](std::exception_ptr raised) {
    try {
      if (raised) std::rethrow_exception(raised);
    } catch (const FileError& error) {
      set_os_error(error);
    }
  });
  module.def("open_store", &open, py::arg("path"), py::arg("fields"), py::arg("capacity"), py::arg("seed"),
             py::arg("write"), py::arg("sync"), py::arg("sync_interval"), py::arg("verify_all"),
             py::arg("skip_damaged"), py::arg("note"));
  module.def(
      "snapshot",
      [](const PyStore& store, const std::string& path, const std::string& note) {
        snapshot(*store.store, path, note);
      },
      py::arg("store"), py::arg("path"), py::arg("note"), py::call_guard<py::gil_scoped_release>());
  module.def(
      "load_store",
      [](const std::string& path, bool skip_damaged) {
        std::unique_ptr<Store> store;
        {
          const py::gil_scoped_release release;
          store = load_store(path, skip_damaged ? OnDamage::kSkip : OnDamage::kRaise);
        }
        return std::make_unique<PyStore>(std::move(store));
      },
      py::arg("path"), py::arg("skip_damaged"));
  module.def("verify", &verify, py::arg("store"), py::arg("first"), py::arg("last"));
  module.def(
      "flush", [](PyStore& store) { store.store->flush(); }, py::arg("store"),
      py::call_guard<py::gil_scoped_release>());
  module.def(
      "close", [](PyStore& store) { store.store->close(); }, py::arg("store"),
      py::call_guard<py::gil_scoped_release>());
  module.def("inspect_store", &inspect, py::arg("path"));
}

}  // namespace serl_fast::bindings
