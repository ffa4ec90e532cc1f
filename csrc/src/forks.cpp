#include "serl_fast/forks.h"

#include <atomic>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace serl_fast {
namespace {

constinit std::atomic<std::uint32_t> counted{0};

#if defined(__unix__) || defined(__APPLE__)
// When the program is loaded, not at the first use: a fork just then would leave the child with a half-made
// static to wait for.
[[maybe_unused]] const int registered =
    pthread_atfork(nullptr, nullptr, [] { counted.fetch_add(1, std::memory_order_relaxed); });
#endif

}  // namespace

std::uint32_t forks() { return counted.load(std::memory_order_relaxed); }

}  // namespace serl_fast
