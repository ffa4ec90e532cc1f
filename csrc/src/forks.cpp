#include "serl_fast/forks.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace serl_fast {

constinit std::atomic<std::uint32_t> forks_counted{0};

#if defined(__unix__) || defined(__APPLE__)
namespace {

// When the program is loaded, not at the first use: a fork just then would leave the child with a half-made
// static to wait for.
[[maybe_unused]] const int registered =
    pthread_atfork(nullptr, nullptr, [] { forks_counted.fetch_add(1, std::memory_order_relaxed); });

}  // namespace
#endif

}  // namespace serl_fast
