#include "serl_fast/table.h"

#include <bit>

namespace serl_fast {
namespace {

constexpr std::size_t kCacheLine = 64;

std::size_t round_up(std::size_t bytes, std::size_t multiple) {
  return (bytes + multiple - 1) / multiple * multiple;
}

// Rows that divide a cache line, or are made of whole ones, never straddle one more than they must.
std::size_t aligned_row(std::size_t bytes) {
  return bytes <= kCacheLine ? std::bit_ceil(bytes) : round_up(bytes, kCacheLine);
}

}  // namespace

Table::Table(const std::string& name, std::span<const std::size_t> field_bytes, std::size_t rows,
             const ColumnMaker& make) {
  cells_.resize(field_bytes.size());
  std::vector<std::size_t> offsets(field_bytes.size());
  std::size_t width = 0;
  // Multiples of 8 and 4 first, so that numbers are aligned without gaps.
  for (const std::size_t alignment : {std::size_t{8}, std::size_t{4}, std::size_t{1}}) {
    for (std::size_t f = 0; f < field_bytes.size(); ++f) {
      const std::size_t bytes = field_bytes[f];
      const std::size_t natural = bytes % 8 == 0 ? 8 : bytes % 4 == 0 ? 4 : 1;
      if (bytes > kSmall || natural != alignment) continue;
      offsets[f] = width;
      width += bytes;
    }
  }
  const auto add = [&](std::size_t bytes) -> Column& {
    return columns_.emplace_back(make(name + "." + std::to_string(columns_.size()), rows, bytes));
  };
  if (width > 0) {
    Column& column = add(aligned_row(width));
    small_ = Cells{.data = column.data(), .stride = column.row_bytes(), .bytes = width};
  }
  for (std::size_t f = 0; f < field_bytes.size(); ++f) {
    if (field_bytes[f] > kSmall) {
      Column& column = add(round_up(field_bytes[f], kCacheLine));
      cells_[f] = Cells{.data = column.data(), .stride = column.row_bytes(), .bytes = field_bytes[f]};
    } else if (width > 0) {
      cells_[f] = Cells{.data = small_.data + offsets[f], .stride = small_.stride, .bytes = field_bytes[f]};
    }
  }
}

std::size_t Table::row_bytes() const {
  std::size_t bytes = 0;
  for (const Column& column : columns_) bytes += column.row_bytes();
  return bytes;
}

void Table::ensure(std::size_t rows) {
  for (Column& column : columns_) column.ensure(rows);
}

}  // namespace serl_fast
