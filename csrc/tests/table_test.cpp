#include "serl_fast/table.h"

#include <cstdint>
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "check.h"

using namespace serl_fast;

namespace {

struct Made {
  std::vector<std::string> names;
  std::vector<std::size_t> row_bytes;

  ColumnMaker maker() {
    return [this](const std::string& name, std::size_t rows, std::size_t bytes) {
      names.push_back(name);
      row_bytes.push_back(bytes);
      return Column(rows, bytes);
    };
  }
};

// Every byte of every cell is its own: written once each, all read back.
void cells_do_not_overlap() {
  const std::vector<std::size_t> bytes = {1, 8, 0, 300, 3, 4, 1, 256, 257, 12, 0};
  Made made;
  const Table table("test", bytes, 7, made.maker());
  std::set<const std::byte*> seen;
  std::size_t count = 0;
  for (std::size_t f = 0; f < bytes.size(); ++f) {
    const Cells& cells = table.field(f);
    CHECK(cells.bytes == bytes[f]);
    for (std::size_t row = 0; row < 7; ++row) {
      for (std::size_t b = 0; b < bytes[f]; ++b, ++count) seen.insert(cells.at(row) + b);
    }
  }
  CHECK(seen.size() == count);
}

void small_fields_share_rows_of_whole_lines() {
  const std::vector<std::size_t> bytes = {1, 300, 8, 4, 1, 256};
  Made made;
  const Table table("steps", bytes, 100, made.maker());
  CHECK((made.names == std::vector<std::string>{"steps.0", "steps.1"}));
  CHECK((made.row_bytes == std::vector<std::size_t>{320, 320}));  // 270 and 300, in lines of 64
  CHECK(table.row_bytes() == 640);
  CHECK(table.small().bytes == 270 && table.small().stride == 320);
  for (const std::size_t f : {0, 2, 3, 4, 5}) CHECK(table.field(f).stride == 320);
  const auto address = [&](std::size_t f) { return reinterpret_cast<std::uintptr_t>(table.field(f).at(3)); };
  CHECK(address(2) % 8 == 0 && address(5) % 8 == 0 && address(3) % 4 == 0);  // numbers are aligned
  CHECK(address(1) % 64 == 0);
}

void narrow_rows_divide_a_line() {
  const std::vector<std::size_t> bytes = {4, 1, 0};
  Made made;
  const Table table("x", bytes, 10, made.maker());
  CHECK((made.row_bytes == std::vector<std::size_t>{8}));
}

void fields_of_nothing_take_nothing() {
  const std::vector<std::size_t> bytes = {0, 0};
  Made made;
  const Table table("x", bytes, 10, made.maker());
  CHECK(made.names.empty());
  CHECK(table.row_bytes() == 0);
  CHECK(table.field(1).bytes == 0 && table.small().bytes == 0);
}

}  // namespace

int main() {
  cells_do_not_overlap();
  small_fields_share_rows_of_whole_lines();
  narrow_rows_divide_a_line();
  fields_of_nothing_take_nothing();
  return serl_fast::test::summary();
}
