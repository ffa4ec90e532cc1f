// Rows of several fields: the small ones side by side, each large one in a column of its own.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "serl_fast/column.h"

namespace serl_fast {

// Where one field of a table lies: the cell of row i begins at data + i * stride.
struct Cells {
  std::byte* data = nullptr;
  std::size_t stride = 0;
  std::size_t bytes = 0;  // of one cell

  std::byte* at(std::size_t row) const { return data + row * stride; }
};

// Fields of at most kSmall bytes share one column, whose rows fill whole cache lines: a random read of a row
// then misses the cache once or twice and not once per field. A larger field has a column to itself, its
// cells aligned to cache lines. Not synchronised.
class Table {
 public:
  static constexpr std::size_t kSmall = 256;

  // Columns are called name.0, name.1, … Throws what `make` throws.
  Table(const std::string& name, std::span<const std::size_t> field_bytes, std::size_t rows,
        const ColumnMaker& make);

  const Cells& field(std::size_t index) const { return cells_[index]; }
  // The column that holds the small fields; a table without any has an empty one.
  const Cells& small() const { return small_; }
  std::size_t row_bytes() const;  // memory of a row, gaps for alignment included
  // Makes the first `rows` rows usable; throws Error where there is no room.
  void ensure(std::size_t rows);

 private:
  std::vector<Column> columns_;
  std::vector<Cells> cells_;
  Cells small_;
};

}  // namespace serl_fast
