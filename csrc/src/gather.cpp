#include "serl_fast/gather.h"

#include <algorithm>
#include <cstring>

namespace serl_fast {
namespace {

constexpr std::size_t kAhead = 8;              // rows between the prefetch and the copy
constexpr std::size_t kPrefetchedBytes = 256;  // beyond this the hardware prefetcher follows a row by itself
constexpr std::size_t kCacheLine = 64;

void prefetch(const std::byte* row, std::size_t bytes) {
#if defined(__GNUC__)
  for (std::size_t offset = 0; offset < std::min(bytes, kPrefetchedBytes); offset += kCacheLine) {
    __builtin_prefetch(row + offset);
  }
#else
  (void)row;
  (void)bytes;
#endif
}

// kBytes fixes the row size at compile time so that a scalar's copy is one load and one store; 0: any size.
template <std::size_t kBytes>
void gather(const Column& column, std::span<const std::uint32_t> rows, std::byte* out,
            std::size_t out_stride) {
  const std::size_t bytes = kBytes != 0 ? kBytes : column.row_bytes();
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (i + kAhead < rows.size()) prefetch(column.row(rows[i + kAhead]), bytes);
    std::memcpy(out + i * out_stride, column.row(rows[i]), kBytes != 0 ? kBytes : bytes);
  }
}

}  // namespace

void gather_rows(const Column& column, std::span<const std::uint32_t> rows, std::byte* out,
                 std::size_t out_stride) {
  switch (column.row_bytes()) {
    case 1:
      return gather<1>(column, rows, out, out_stride);
    case 4:
      return gather<4>(column, rows, out, out_stride);
    case 8:
      return gather<8>(column, rows, out, out_stride);
    default:
      return gather<0>(column, rows, out, out_stride);
  }
}

void derive_targets(const std::byte* terminated, std::size_t rows, float discount, std::byte* masks,
                    std::byte* discounts) {
  for (std::size_t i = 0; i < rows; ++i) {
    const float mask = terminated[i] == std::byte{0} ? 1.0F : 0.0F;
    const float discounted = discount * mask;
    std::memcpy(masks + i * sizeof(float), &mask, sizeof(float));
    std::memcpy(discounts + i * sizeof(float), &discounted, sizeof(float));
  }
}

}  // namespace serl_fast
