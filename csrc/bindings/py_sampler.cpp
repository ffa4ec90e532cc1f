#include <utility>

#include "py_store.h"
#include "without_lock.h"

namespace serl_fast::bindings {
namespace {

View make_view(double discount, std::size_t n_step, std::size_t length, bool pad_last) {
  return View{discount, n_step, length, pad_last ? Pad::kLast : Pad::kNext};
}

Order make_order(const std::string& name) {
  if (name == "uniform") return Order::kUniform;
  if (name == "prioritized") return Order::kPrioritized;
  if (name == "epoch") return Order::kEpoch;
  throw Error("the order is '" + name + "'; it is 'uniform', 'prioritized' or 'epoch'");
}

}  // namespace

PySampler::PySampler(PyStore& store, const View& view, Order order, double beta,
                     const std::vector<std::string>& names)
    : sampler(*store.store, view, order, beta), form_(sampler.layout(), names) {}

bool PySampler::try_sample(py::handle batch) {
  const auto columns = form_.read(batch);
  if (!columns) return false;
  without_lock([&] { sampler.sample(columns->rows, columns->data); });
  return true;
}

void PySampler::sample(const py::list& out, std::size_t rows) {
  const BatchForm::Columns columns = form_.read(out, rows);
  without_lock([&] { sampler.sample(rows, columns.data); });
}

std::size_t PySampler::sample_epoch(const py::list& out, std::size_t rows) {
  const BatchForm::Columns columns = form_.read(out, rows);
  return without_lock([&] { return sampler.sample_epoch(rows, columns.data); });
}

void PySampler::gather(const py::array_t<std::int64_t, py::array::c_style>& places, bool are_ids,
                       const py::list& out) const {
  const auto rows = static_cast<std::size_t>(places.size());
  const std::vector<std::byte*> columns = form_.read(out, rows).data;
  const std::span<const std::int64_t> numbers(places.data(), rows);
  without_lock([&] {
    if (are_ids) {
      sampler.store().gather_ids(numbers, sampler.layout(), columns);
    } else {
      sampler.store().gather(numbers, sampler.layout(), columns);
    }
  });
}

void bind_sampler(py::module_& module) {
  py::class_<PySampler>(module, "Sampler")
      .def(py::init([](PyStore& store, double discount, std::size_t n_step, std::size_t length, bool pad_last,
                       const std::string& order, double beta, const std::vector<std::string>& names) {
             return std::make_unique<PySampler>(store, make_view(discount, n_step, length, pad_last),
                                                make_order(order), beta, names);
           }),
           py::keep_alive<1, 2>(), py::arg("store"), py::arg("discount"), py::arg("n_step"),
           py::arg("length"), py::arg("pad_last"), py::arg("order"), py::arg("beta"), py::arg("names"))
      .def("try_sample", &PySampler::try_sample, py::arg("batch"))
      .def("sample", &PySampler::sample, py::arg("out"), py::arg("rows"))
      .def("sample_epoch", &PySampler::sample_epoch, py::arg("out"), py::arg("rows"))
      .def("gather", &PySampler::gather, py::arg("places"), py::arg("are_ids"), py::arg("out"))
      .def("set_beta", [](PySampler& self, double beta) { self.sampler.set_beta(beta); }, py::arg("beta"));

  // Name, dtype, shape without the batch axis, whether it has an axis of the sequence.
  module.def(
      "outputs",
      [](const std::vector<FieldTuple>& observations, const std::vector<FieldTuple>& steps,
         std::size_t length) {
        const Layout layout(make_schema(observations, steps), View{1.0, 1, length, Pad::kNext});
        py::list result;
        for (const Output& output : layout.columns) {
          const ArrayForm form = BatchForm::of(output);
          result.append(py::make_tuple(form.name, std::string(name_of(form.dtype)), py::cast(form.shape)));
        }
        return result;
      },
      py::arg("observations"), py::arg("steps"), py::arg("length"));
}

}  // namespace serl_fast::bindings
