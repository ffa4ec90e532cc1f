// Memory of large batches that is used again.
#pragma once

#include <pybind11/numpy.h>

#include <cstddef>

namespace serl_fast::bindings {

namespace py = pybind11;

// A new array of `bytes` uint8, aligned to 64 bytes, its content undefined. When it and every view of it are
// gone, its memory waits for the next block of that size: the system hands out memory page by page, zeroed,
// which for a batch of images takes several times as long as filling it. At most kKeptBytes wait; the longest
// unused go first.
constexpr std::size_t kKeptBytes = std::size_t{256} << 20;
py::array_t<std::uint8_t> make_block(std::size_t bytes);

}  // namespace serl_fast::bindings
