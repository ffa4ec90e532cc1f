// Copies of large rows that leave the caches to others.
#pragma once

#include <cstddef>

namespace serl_fast {

// Copies `bytes` bytes between blocks of any alignment that do not overlap, past the caches where the
// processor can: for rows of a few KB and more whose copy this core does not read again soon. Others may
// read what it wrote after stream_fence() of the same thread and the usual synchronisation.
void stream_copy(std::byte* to, const std::byte* from, std::size_t bytes);
void stream_fence();

}  // namespace serl_fast
