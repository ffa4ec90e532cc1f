// Work without the interpreter lock.
#pragma once

#include <Python.h>

#include <exception>
#include <optional>
#include <type_traits>

namespace serl_fast::bindings {

// work() without the interpreter lock. Not by py::gil_scoped_release: a daemon thread that wants the lock
// back while the interpreter ends is unwound from there, which no destructor survives.
template <class Work>
auto without_lock(Work work) {
  using Result = decltype(work());
  PyThreadState* const state = PyEval_SaveThread();
  std::exception_ptr error;
  if constexpr (std::is_void_v<Result>) {
    try {
      work();
    } catch (const std::exception&) {
      error = std::current_exception();
    }
    PyEval_RestoreThread(state);
    if (error != nullptr) std::rethrow_exception(error);
  } else {
    std::optional<Result> result;
    try {
      result.emplace(work());
    } catch (const std::exception&) {
      error = std::current_exception();
    }
    PyEval_RestoreThread(state);
    if (error != nullptr) std::rethrow_exception(error);
    return *std::move(result);
  }
}

}  // namespace serl_fast::bindings
