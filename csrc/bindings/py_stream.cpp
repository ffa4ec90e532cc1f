#include "py_stream.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <stdexcept>
#include <utility>

#include "without_lock.h"

namespace serl_fast::bindings {
namespace {

constexpr double kSlice = 0.05;  // seconds between two looks for Ctrl-C

// Calls attempt(seconds) without the interpreter lock until it returns true; false when `timeout` is over.
template <class Attempt>
bool wait_for(double timeout, Attempt attempt) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point begin = Clock::now();
  for (double left = timeout;;) {
    const double slice = timeout < 0 ? kSlice : std::min(left, kSlice);
    if (without_lock([&] { return attempt(slice); })) return true;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (timeout < 0) continue;
    left = timeout - std::chrono::duration<double>(Clock::now() - begin).count();
    if (left <= 0) return false;
  }
}

struct PyLease {
  BatchStream::Lease lease;
  std::size_t bytes;
};

// One side of a limiter; false when `timeout` is over.
template <class Attempt>
bool admit(const RateLimiter& limiter, double timeout, Attempt attempt) {
  if (attempt(0.0)) return true;
  bool admitted = false;
  const bool decided = wait_for(timeout, [&](double seconds) {
    admitted = attempt(seconds);
    return admitted || limiter.closed();
  });
  if (decided && !admitted) throw std::runtime_error("the rate limiter is closed");
  return admitted;
}

void bind_limiter(py::module_& module) {
  py::class_<RateLimiter>(module, "RateLimiter")
      .def(py::init([](std::size_t min_size, double samples_per_insert, double slack, bool block_inserts) {
             return std::make_unique<RateLimiter>(
                 RateLimiter::Options{min_size, samples_per_insert, slack, block_inserts});
           }),
           py::arg("min_size"), py::arg("samples_per_insert"), py::arg("slack"), py::arg("block_inserts"))
      .def(
          "insert",
          [](RateLimiter& self, std::size_t rows, double timeout) {
            return admit(self, timeout, [&](double seconds) { return self.insert(rows, seconds); });
          },
          py::arg("rows"), py::arg("timeout"))
      .def(
          "sample",
          [](RateLimiter& self, std::size_t rows, double timeout) {
            return admit(self, timeout, [&](double seconds) { return self.sample(rows, seconds); });
          },
          py::arg("rows"), py::arg("timeout"))
      .def("may_insert", &RateLimiter::may_insert, py::arg("rows"))
      .def("may_sample", &RateLimiter::may_sample, py::arg("rows"))
      .def("undo_insert", &RateLimiter::undo_insert, py::arg("rows"))
      .def("undo_sample", &RateLimiter::undo_sample, py::arg("rows"))
      .def("set_counts", &RateLimiter::set_counts, py::arg("inserted"), py::arg("sampled"))
      .def("close", &RateLimiter::close)
      .def_property_readonly("inserted", &RateLimiter::inserted)
      .def_property_readonly("sampled", &RateLimiter::sampled)
      .def_property_readonly("closed", &RateLimiter::closed);
}

BatchStream::Options completed(BatchStream::Options options, const BatchForm& form,
                               const py::object& limiter) {
  options.wanted = form.wanted();
  options.sources = form.has_sources();
  options.limiter = limiter.is_none() ? nullptr : &limiter.cast<RateLimiter&>();
  return options;
}

}  // namespace

PyStream::PyStream(py::object mixture, BatchStream::Options options, py::object limiter)
    : mixture_(std::move(mixture)),
      limiter_(std::move(limiter)),
      form_(mixture_.cast<PyMixture&>().form),
      rows_(options.rows),
      quick_(!options.max_behind),
      stream(mixture_.cast<PyMixture&>().mixture, completed(options, form_, limiter_)) {}

py::object PyStream::next(double timeout) {
  std::optional<BatchStream::Lease> lease;
  const auto attempt = [&](double seconds) {
    if (auto given = stream.next(seconds)) lease.emplace(std::move(*given));
    return lease.has_value();
  };
  // Giving the lock away for a batch that is ready could cost a turn of every other thread.
  if (!(quick_ && attempt(0.0)) && !wait_for(timeout, attempt)) return py::none();
  auto owner = py::cast(std::make_unique<PyLease>(PyLease{std::move(*lease), stream.slot_bytes()}));
  std::byte* data = owner.cast<PyLease&>().lease.data();
  py::dict batch = form_.make(data, stream.offsets(), rows_, owner);
  return py::make_tuple(std::move(batch), std::move(owner));
}

void bind_stream(py::module_& module) {
  bind_limiter(module);
  py::class_<PyLease>(module, "Lease")
      .def_property_readonly("number", [](const PyLease& self) { return self.lease.number(); })
      .def_property_readonly("appended", [](const PyLease& self) { return self.lease.appended(); })
      .def_property_readonly("counts", [](const PyLease& self) { return self.lease.counts(); })
      .def_property_readonly("block", [](const py::object& self) {
        const auto& lease = self.cast<const PyLease&>();
        return py::array(py::dtype("uint8"), {static_cast<py::ssize_t>(lease.bytes)}, lease.lease.data(),
                         self);
      });
  py::class_<PyStream>(module, "BatchStream")
      .def(py::init([](py::object mixture, std::size_t rows, std::size_t slots, unsigned threads,
                       std::optional<std::uint64_t> max_behind, bool scheduled, py::object limiter) {
             BatchStream::Options options;
             options.rows = rows;
             options.slots = slots;
             options.threads = threads;
             options.max_behind = max_behind;
             options.scheduled = scheduled;
             return std::make_unique<PyStream>(std::move(mixture), std::move(options), std::move(limiter));
           }),
           py::arg("mixture"), py::arg("rows"), py::arg("slots"), py::arg("threads"), py::arg("max_behind"),
           py::arg("scheduled"), py::arg("limiter"))
      .def("next", &PyStream::next, py::arg("timeout"))
      .def(
          "schedule", [](PyStream& self, const std::vector<double>& shares) { self.stream.schedule(shares); },
          py::arg("shares"))
      .def("close", [](PyStream& self) { without_lock([&] { self.stream.close(); }); })
      .def_property_readonly("closed", [](const PyStream& self) { return self.stream.closed(); })
      .def_property_readonly("waiting_for", [](const PyStream& self) { return self.stream.waiting_for(); })
      .def_property_readonly("drawn_again", [](const PyStream& self) { return self.stream.drawn_again(); })
      .def_property_readonly(
          "address",
          [](const PyStream& self) { return reinterpret_cast<std::uintptr_t>(self.stream.memory()); })
      .def_property_readonly("nbytes", [](const PyStream& self) { return self.stream.memory_bytes(); })
      .def_property_readonly("slot_bytes", [](const PyStream& self) { return self.stream.slot_bytes(); })
      .def_property_readonly("offsets", [](const PyStream& self) { return self.stream.offsets(); });
}

}  // namespace serl_fast::bindings
