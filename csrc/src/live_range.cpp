#include "serl_fast/live_range.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <thread>
#include <tuple>

#include "serl_fast/store_files.h"

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>

#include <cerrno>
#include <csignal>
#endif

namespace serl_fast {
namespace {

#if defined(__unix__) || defined(__APPLE__)
std::uint32_t this_process() {
  return static_cast<std::uint32_t>(getpid()) & ((1U << LiveRange::kProcessBits) - 1);
}
bool is_gone(std::uint32_t process) { return kill(static_cast<pid_t>(process), 0) != 0 && errno == ESRCH; }
#else
std::uint32_t this_process() { return 1; }
bool is_gone(std::uint32_t) { return false; }
#endif

// A pin that this thread used before is likely free and in its cache.
thread_local std::size_t preferred = std::hash<std::thread::id>{}(std::this_thread::get_id());

}  // namespace

std::uint64_t LiveRange::unread_before() {
  std::uint64_t oldest = begin.load(std::memory_order_relaxed);
  begin.store(oldest);  // the same value, but sequentially consistent; see the header
  const std::size_t used = std::min<std::size_t>(pins_used.load(), kPins);
  for (std::size_t i = 0; i < used; ++i) {
    if (const std::uint64_t word = pins[i].word.load(); word != 0) {
      oldest = std::min(oldest, (word >> kProcessBits) - 1);
    }
  }
  return oldest;
}

std::pair<std::uint64_t, std::uint64_t> LiveRange::live(std::size_t capacity) const {
  std::uint64_t first, last;
  do {  // one instant's pair: begin did not change between two reads of it
    first = begin.load();
    last = end.load();
  } while (begin.load() != first);
  // An append publishes the new step before it gives up the oldest one.
  return {last - first > capacity ? last - capacity : first, last};
}

void LiveRange::release_dead() {
  for (Pin& pin : pins) {
    std::uint64_t word = pin.word.load();
    const auto process = static_cast<std::uint32_t>(word & ((1U << kProcessBits) - 1));
    if (word != 0 && is_gone(process)) pin.word.compare_exchange_strong(word, 0);
  }
}

Reading::Reading(LiveRange& range, std::size_t capacity, const StoreFiles* files) {
  Backoff backoff;
  std::uint64_t pinned = 0;
  for (;; backoff.wait()) {
    if (range.closed.load() != 0) {
      if (files != nullptr && backoff.time_to_act()) files->finish_rewriting();
      continue;
    }
    // The first pins are the ones that the writer looks at: take a new one only where those are held.
    const std::size_t used = std::min<std::size_t>(range.pins_used.load(), LiveRange::kPins);
    pin_ = nullptr;
    for (std::size_t i = 0; i < LiveRange::kPins && pin_ == nullptr; ++i) {
      const std::size_t at = i < used ? (preferred + i) % used : i;
      if (range.pins[at].word.load(std::memory_order_relaxed) != 0) continue;
      if (at >= used) {  // before the pin is taken, so that no pin is ever out of the writer's sight
        std::uint32_t known = range.pins_used.load();
        while (known <= at &&
               !range.pins_used.compare_exchange_weak(known, static_cast<std::uint32_t>(at + 1))) {
        }
      }
      std::uint64_t free = 0;
      pinned = range.begin.load();
      const std::uint64_t word = (pinned + 1) << LiveRange::kProcessBits | this_process();
      if (range.pins[at].word.compare_exchange_strong(free, word)) {
        pin_ = &range.pins[at];
        preferred = at;
      }
    }
    if (pin_ == nullptr) {
      if (backoff.time_to_act()) range.release_dead();
      continue;
    }
    if (range.closed.load() == 0) {
      std::tie(begin_, end_) = range.live(capacity);
      if (begin_ >= pinned)
        return;  // else a load has gone back to earlier steps, which the pin does not hold
    }
    pin_->word.store(0);
  }
}

Rewriting::Rewriting(LiveRange& range) : range_(range) {
  range_.closed.store(this_process());
  Backoff backoff;
  const auto is_read = [&] {
    return std::any_of(range_.pins.begin(), range_.pins.end(),
                       [](const auto& pin) { return pin.word.load() != 0; });
  };
  while (is_read()) {
    backoff.wait();
    if (backoff.long_since()) range_.release_dead();
  }
}

void Backoff::wait() {
  ++rounds_;
  if (rounds_ < 8) return;
  if (rounds_ < 64) return std::this_thread::yield();
  std::this_thread::sleep_for(std::chrono::microseconds(50));
}

}  // namespace serl_fast
