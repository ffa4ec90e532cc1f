// The Python module serl_fast.replay._native: converts, releases the interpreter lock, delegates. Names,
// defaults and conversions that are not free live in Python.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <span>

#include "block_pool.h"
#include "py_store.h"
#include "py_stream.h"
#include "serl_fast/rng.h"
#include "serl_fast/worker_pool.h"

PYBIND11_MODULE(_native, module) {
  namespace py = pybind11;
  module.doc() = "The replay store's C++ core; use serl_fast.replay.";
  serl_fast::bindings::bind_store(module);
  serl_fast::bindings::bind_files(module);
  serl_fast::bindings::bind_sampler(module);
  serl_fast::bindings::bind_mixture(module);
  serl_fast::bindings::bind_stream(module);

  module.def(
      "philox4x32",
      [](std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key) {
        return serl_fast::philox4x32(counter, key);
      },
      py::arg("counter"), py::arg("key"));
  module.def(
      "uniform_indices",
      [](std::uint64_t seed, std::uint64_t draw, std::uint64_t bound, std::size_t count) {
        if (bound == 0) throw serl_fast::Error("the bound is 0; there is nothing to draw from");
        py::array_t<std::uint64_t> result(static_cast<py::ssize_t>(count));
        serl_fast::uniform_indices(seed, draw, bound, std::span(result.mutable_data(), count));
        return result;
      },
      py::arg("seed"), py::arg("draw"), py::arg("bound"), py::arg("count"));
  module.def("block", &serl_fast::bindings::make_block, py::arg("bytes"));
  module.def("threads", [] { return serl_fast::WorkerPool::shared().threads(); });
  module.def(
      "set_threads", [](unsigned threads) { serl_fast::WorkerPool::shared().resize(threads); },
      py::arg("threads"));
}
