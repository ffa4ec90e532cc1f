// A reader-writer lock that serves in the order of arrival.
#pragma once

#include <atomic>
#include <cstdint>
#include <shared_mutex>

namespace serl_fast {

// Many readers or one writer, first come, first served: a writer waits for the readers that came before it
// and no others, so samplers in a tight loop cannot starve the appender, nor the appender the samplers. Meets
// the standard's requirements for std::unique_lock and std::shared_lock (without the try_ functions).
//
// Every comer takes a ticket and, when it is called, enters the reader-writer lock; the next ticket is called
// as soon as it is in. A plain std::mutex would not do here: it lets a fast thread overtake a waiting one.
class FairSharedMutex {
 public:
  void lock() {
    const std::uint32_t ticket = wait_for_turn();
    mutex_.lock();
    call(ticket + 1);
  }
  void unlock() { mutex_.unlock(); }

  void lock_shared() {
    const std::uint32_t ticket = wait_for_turn();
    mutex_.lock_shared();
    call(ticket + 1);
  }
  void unlock_shared() { mutex_.unlock_shared(); }

 private:
  std::uint32_t wait_for_turn() {
    const std::uint32_t ticket = next_ticket_.fetch_add(1, std::memory_order_relaxed);
    for (std::uint32_t called = called_.load(std::memory_order_acquire); called != ticket;
         called = called_.load(std::memory_order_acquire)) {
      called_.wait(called, std::memory_order_acquire);
    }
    return ticket;
  }
  void call(std::uint32_t ticket) {
    called_.store(ticket, std::memory_order_release);
    called_.notify_all();
  }

  std::atomic<std::uint32_t> next_ticket_{0};
  std::atomic<std::uint32_t> called_{0};
  std::shared_mutex mutex_;
};

}  // namespace serl_fast
