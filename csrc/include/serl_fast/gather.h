// Copies of scattered cells into one contiguous block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "serl_fast/table.h"

namespace serl_fast {

// Copies cell rows[i] to out + i * out_stride; `past_caches`: with stream_copy, for large cells. Any thread,
// as long as nobody writes those cells.
void gather_cells(const Cells& cells, std::span<const std::uint32_t> rows, std::byte* out,
                  std::size_t out_stride, bool past_caches);

// Asks for the cache lines of cell `row`, up to Table::kSmall bytes of it: further ones the hardware fetches
// by itself.
void prefetch(const Cells& cells, std::uint32_t row);

}  // namespace serl_fast
