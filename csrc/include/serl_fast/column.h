// Memory of rows of equal size: one aligned block, from the system or from a file.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <utility>

namespace serl_fast {

// A fixed number of zeroed rows, the first aligned to 64 bytes. The memory is reserved at once and becomes
// resident page by page when it is first written, so rows that are never used cost nothing. Movable, not
// copyable. Not synchronised: the owner decides who may touch which row when.
class Column {
 public:
  // What owns the bytes of a column that is not the system's anonymous memory.
  class Owner {
   public:
    virtual ~Owner() = default;
    // Makes the first `bytes` bytes usable; throws Error where there is no room for them.
    virtual void ensure(std::size_t bytes) = 0;
  };

  Column() = default;
  // Anonymous memory; huge pages are asked for. Throws std::bad_alloc where the system refuses.
  Column(std::size_t rows, std::size_t row_bytes);
  // Memory of somebody else, at `data`, kept alive by `owner`.
  Column(std::unique_ptr<Owner> owner, std::byte* data, std::size_t row_bytes)
      : owner_(std::move(owner)), data_(data), row_bytes_(row_bytes) {}
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
  // Makes the first `rows` rows usable. Anonymous memory always is; a file grows, and may find no room.
  void ensure(std::size_t rows) {
    if (owner_ != nullptr) owner_->ensure(rows * row_bytes_);
  }

 private:
  void swap(Column& other) noexcept {
    std::swap(owner_, other.owner_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(row_bytes_, other.row_bytes_);
  }

  std::unique_ptr<Owner> owner_;
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;  // of anonymous memory
  std::size_t row_bytes_ = 0;
};

// Where a store gets a column from: name, rows, bytes of a row.
using ColumnMaker = std::function<Column(const std::string&, std::size_t, std::size_t)>;

}  // namespace serl_fast
