#include "py_stream.h"
#include "without_lock.h"

namespace serl_fast::bindings {
namespace {

std::vector<Sampler*> samplers_of(const py::list& samplers) {
  std::vector<Sampler*> result;
  for (const py::handle each : samplers) result.push_back(&each.cast<PySampler&>().sampler);
  return result;
}

}  // namespace

PyMixture::PyMixture(const py::list& samplers, const std::vector<double>& shares, std::size_t min_size,
                     const std::vector<std::string>& names)
    : samplers_(samplers), mixture(samplers_of(samplers), shares, min_size), form(mixture.layout(), names) {}

bool PyMixture::try_sample(py::handle batch) {
  const auto columns = form.read(batch);
  if (!columns) return false;
  without_lock([&] { mixture.sample(columns->rows, columns->data, columns->sources); });
  return true;
}

void PyMixture::sample(const py::list& out, std::size_t rows) {
  const BatchForm::Columns columns = form.read(out, rows);
  without_lock([&] { mixture.sample(rows, columns.data, columns.sources); });
}

void bind_mixture(py::module_& module) {
  py::class_<PyMixture>(module, "Mixture")
      .def(py::init<const py::list&, const std::vector<double>&, std::size_t,
                    const std::vector<std::string>&>(),
           py::arg("samplers"), py::arg("shares"), py::arg("min_size"), py::arg("names"))
      .def("try_sample", &PyMixture::try_sample, py::arg("batch"))
      .def("sample", &PyMixture::sample, py::arg("out"), py::arg("rows"))
      .def(
          "counts", [](const PyMixture& self, std::size_t rows) { return self.mixture.counts(rows); },
          py::arg("rows"))
      .def_property(
          "shares", [](const PyMixture& self) { return self.mixture.shares(); },
          [](PyMixture& self, const std::vector<double>& shares) { self.mixture.set_shares(shares); });
}

}  // namespace serl_fast::bindings
