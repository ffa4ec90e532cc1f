#include "serl_fast/gather.h"

#include <cstring>
#include <vector>

#include "check.h"

using serl_fast::Column;

namespace {

// Every size has a path of its own or the general one; the stride leaves room between the rows.
void rows_of_every_size() {
  for (const std::size_t bytes : {1, 3, 4, 8, 16, 1000}) {
    Column column(50, bytes);
    for (std::size_t row = 0; row < 50; ++row) std::memset(column.row(row), static_cast<int>(row), bytes);
    const std::vector<std::uint32_t> rows = {49, 0, 7, 7, 1, 2, 3, 4, 5, 6, 30};
    const std::size_t stride = bytes + 2;
    std::vector<std::byte> out(rows.size() * stride, std::byte{255});
    serl_fast::gather_rows(column, rows, out.data(), stride);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      for (std::size_t b = 0; b < stride; ++b) {
        CHECK(out[i * stride + b] == (b < bytes ? std::byte(rows[i]) : std::byte{255}));
      }
    }
  }
}

void targets() {
  const std::byte terminated[] = {std::byte{0}, std::byte{1}, std::byte{0}};
  float masks[3];
  float discounts[3];
  serl_fast::derive_targets(terminated, 3, 0.9F, reinterpret_cast<std::byte*>(masks),
                            reinterpret_cast<std::byte*>(discounts));
  CHECK(masks[0] == 1.0F && masks[1] == 0.0F && masks[2] == 1.0F);
  CHECK(discounts[0] == 0.9F && discounts[1] == 0.0F && discounts[2] == 0.9F);
}

}  // namespace

int main() {
  rows_of_every_size();
  targets();
  return serl_fast::test::summary();
}
