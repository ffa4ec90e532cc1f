// Whether this process was forked since.
#pragma once

#include <cstdint>

namespace serl_fast {

// How many forks this process descends from. A child counts one more than its parent, whose threads, and with
// them whoever held a lock, it lacks.
std::uint32_t forks();

}  // namespace serl_fast
