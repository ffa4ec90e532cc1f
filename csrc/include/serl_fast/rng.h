// Random numbers that depend on nothing but (seed, draw, row): the same whichever thread asks, in any order.
#pragma once

#include <array>
#include <cstdint>
#include <span>

namespace serl_fast {

// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter,
                                        std::array<std::uint32_t, 2> key);

// Fills `out` with independent uniform numbers below `bound` (> 0), without bias: Lemire, "Fast random
// integer generation in an interval", 2019. Key = seed; counter = (row, attempt, draw low, draw high); the
// number is the low two words. Any thread; never blocks.
void uniform_indices(std::uint64_t seed, std::uint64_t draw, std::uint64_t bound,
                     std::span<std::uint64_t> out);

// What uniform_indices gives row `row`, where its first `attempt` attempts are passed over; `attempt` becomes
// the number of those used up. For a number that turns out to be of no use.
std::uint64_t uniform_index(std::uint64_t seed, std::uint64_t draw, std::uint64_t bound, std::size_t row,
                            std::uint32_t& attempt);

// Fills `out` with independent uniform numbers of [0, 1): the upper 53 bits of the same words, attempt 0,
// times 2^-53.
void uniform_doubles(std::uint64_t seed, std::uint64_t draw, std::span<double> out);

}  // namespace serl_fast
