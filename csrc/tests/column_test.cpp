#include "serl_fast/column.h"

#include <cstdint>
#include <limits>
#include <new>

#include "check.h"

using serl_fast::Column;

int main() {
  Column column(1000, 12);
  CHECK(reinterpret_cast<std::uintptr_t>(column.data()) % 64 == 0);
  CHECK(column.row(7) == column.data() + 84);
  bool zero = true;
  for (std::size_t i = 0; i < 12000; ++i) zero = zero && column.data()[i] == std::byte{0};
  CHECK(zero);

  column.row(999)[11] = std::byte{5};
  const std::byte* const address = column.data();
  Column moved(std::move(column));
  CHECK(moved.data() == address);
  CHECK(moved.row(999)[11] == std::byte{5});
  Column other(1, 1);
  other = std::move(moved);
  CHECK(other.data() == address);

  const Column empty(0, 4);
  CHECK(empty.data() != nullptr);
  CHECK_THROWS(Column(std::numeric_limits<std::size_t>::max() / 2, 8), std::bad_alloc, "");
  return serl_fast::test::summary();
}
