// Memory of one field: rows of equal size in one aligned block.
#pragma once

#include <cstddef>
#include <utility>

namespace serl_fast {

// A fixed number of zeroed rows, the first aligned to 64 bytes. The memory is reserved at once and becomes
// resident page by page when it is first written, so rows that are never used cost nothing. Movable, not
// copyable. Not synchronised: the owner decides who may touch which row when.
class Column {
 public:
  Column() = default;
  // Throws std::bad_alloc where the system refuses the reservation.
  Column(std::size_t rows, std::size_t row_bytes);
  ~Column();
  Column(Column&& other) noexcept { swap(other); }
  Column& operator=(Column&& other) noexcept {
    swap(other);
    return *this;
  }

  std::byte* row(std::size_t index) { return data_ + index * row_bytes_; }
  const std::byte* row(std::size_t index) const { return data_ + index * row_bytes_; }
  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  std::size_t row_bytes() const { return row_bytes_; }

 private:
  void swap(Column& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(row_bytes_, other.row_bytes_);
  }

  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
  std::size_t row_bytes_ = 0;
};

}  // namespace serl_fast
