#include "serl_fast/gather.h"

#include <cstring>
#include <vector>

#include "check.h"
#include "serl_fast/column.h"

using serl_fast::Cells;
using serl_fast::Column;

namespace {

// Every size has a path of its own or the general one; cells lie apart, and so do the places they go to.
void cells_of_every_size() {
  for (const std::size_t bytes : {1, 3, 4, 8, 15, 16, 17, 100, 256, 257, 1000, 5000}) {
    Column column(50, bytes + 5);
    const Cells cells{.data = column.data(), .stride = bytes + 5, .bytes = bytes};
    for (std::size_t row = 0; row < 50; ++row) std::memset(cells.at(row), static_cast<int>(row), bytes);
    const std::vector<std::uint32_t> rows = {49, 0, 7, 7, 1, 2, 3, 4, 5, 6, 30};
    const std::size_t stride = bytes + 2;
    for (const bool past_caches : {false, true}) {
      std::vector<std::byte> out(rows.size() * stride, std::byte{255});
      serl_fast::gather_cells(cells, rows, out.data(), stride, past_caches);
      for (std::size_t i = 0; i < rows.size(); ++i) {
        serl_fast::prefetch(cells, rows[i]);
        for (std::size_t b = 0; b < stride; ++b) {
          CHECK(out[i * stride + b] == (b < bytes ? std::byte(rows[i]) : std::byte{255}));
        }
      }
    }
  }
}

void cells_of_nothing() {
  const std::vector<std::uint32_t> rows = {3, 1};
  serl_fast::gather_cells(Cells{}, rows, nullptr, 0, false);
}

}  // namespace

int main() {
  cells_of_every_size();
  cells_of_nothing();
  return serl_fast::test::summary();
}
