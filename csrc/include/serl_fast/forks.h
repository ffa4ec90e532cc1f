// Whether this process was forked since.
#pragma once

#include <atomic>
#include <cstdint>

namespace serl_fast {

extern std::atomic<std::uint32_t> forks_counted;

// How many forks this process descends from. A child counts one more than its parent, whose threads, and with
// them whoever held a lock, it lacks. Every append asks.
inline std::uint32_t forks() { return forks_counted.load(std::memory_order_relaxed); }

}  // namespace serl_fast
