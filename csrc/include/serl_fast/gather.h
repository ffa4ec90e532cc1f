// Copies of scattered rows into one contiguous block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "serl_fast/column.h"

namespace serl_fast {

// Copies column row rows[i] to out + i * out_stride. Any thread, as long as nobody writes those rows.
void gather_rows(const Column& column, std::span<const std::uint32_t> rows, std::byte* out,
                 std::size_t out_stride);

// The two columns a temporal-difference target needs, from `terminated` (one byte a row):
// masks = 1 - terminated and discounts = discount * masks, both float32.
void derive_targets(const std::byte* terminated, std::size_t rows, float discount, std::byte* masks,
                    std::byte* discounts);

}  // namespace serl_fast
