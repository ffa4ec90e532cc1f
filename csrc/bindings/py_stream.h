// Mixtures, streams and rate limiters as Python objects: convert, release the interpreter lock, delegate.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "batch_form.h"
#include "py_store.h"
#include "serl_fast/mixture.h"
#include "serl_fast/rate_limiter.h"
#include "serl_fast/stream.h"

namespace serl_fast::bindings {

class PyMixture {
 public:
  // `names`: see BatchForm.
  PyMixture(const py::list& samplers, const std::vector<double>& shares, std::size_t min_size,
            const std::vector<std::string>& names);

  // As those of PySampler.
  bool try_sample(py::handle batch);
  void sample(const py::list& out, std::size_t rows);

 private:
  const py::list samplers_;  // kept alive

 public:
  Mixture mixture;
  const BatchForm form;
};

class PyStream {
 public:
  PyStream(py::object mixture, BatchStream::Options options, py::object limiter);

  // A batch and its lease, which its arrays keep alive; None when `timeout` seconds (negative: no limit) have
  // passed. Ctrl-C ends the wait.
  py::object next(double timeout);

 private:
  const py::object mixture_;  // kept alive
  const py::object limiter_;
  const BatchForm& form_;
  const std::size_t rows_;
  const bool quick_;  // whether handing out a batch that is ready never copies

 public:
  BatchStream stream;
};

void bind_mixture(py::module_& module);
void bind_stream(py::module_& module);

}  // namespace serl_fast::bindings
