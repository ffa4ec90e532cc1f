// Batches drawn ahead by threads of their own.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "serl_fast/column.h"
#include "serl_fast/mixture.h"
#include "serl_fast/rate_limiter.h"

namespace serl_fast {

// A ring of slots, each with memory for one batch, filled ahead by threads and handed out in the order of
// drawing: batch 0, 1, 2, … are those that Mixture::sample would have drawn, however many threads there are,
// as long as the contents and shares stay the same and nobody else draws.
//
// A batch belongs to whoever has its Lease; its slot is refilled when the lease is gone, never before. So
// batch i is drawn after batch i - slots was given back: it knows every transition stored until then. The
// threads sleep until half of the slots are free or no batch is ready, while no store holds enough and while
// the limiter says no (they look for the latter two every few milliseconds).
//
// Any thread may call anything. After a fork the child has no threads: there everything but the destructors
// throws, and those leave what the parent has alone.
class BatchStream {
 public:
  struct Options {
    std::size_t rows = 256;
    std::size_t slots = 4;       // at least 2: one in use while the next is filled
    unsigned threads = 1;        // 1 … 64
    std::vector<bool> wanted{};  // per column of the layout
    bool sources = false;        // whether batches have the column of Mixture::sample's sources
    // A batch of which a store has since got more than this many transitions is drawn again before it is
    // handed out, with the next draw numbers, by the thread that asks for it.
    std::optional<std::uint64_t> max_behind{};
    // Batches are drawn only once schedule() has named their shares.
    bool scheduled = false;
    // Every batch drawn ahead counts `rows` samples; those never handed out are taken back by close().
    RateLimiter* limiter = nullptr;
  };
  class Lease;

  // The mixture and the limiter outlive close(). Throws Error for options out of range, std::bad_alloc.
  BatchStream(Mixture& mixture, Options options);
  ~BatchStream();  // as close(), which leases may outlive
  BatchStream(const BatchStream&) = delete;
  BatchStream& operator=(const BatchStream&) = delete;

  // The next batch, or nothing when `timeout` seconds (negative: no limit) have passed. Throws what stopped a
  // filling thread, now and in every later call; std::runtime_error where the stream is closed or all slots
  // are on lease, so that no batch could ever come.
  std::optional<Lease> next(double timeout);
  // The shares of the first batch that has none yet.
  void schedule(std::span<const double> shares);
  // Ends the threads; calls of next that wait throw. Returns when they have ended. May be called again.
  void close();
  bool closed() const;
  // What the threads wait for, as part of a sentence; empty if for nothing but free slots.
  std::string waiting_for() const;

  std::uint64_t drawn_again() const;  // batches, because of max_behind
  // All slots in one block, for who wants to lock its pages; a slot begins on a page.
  std::byte* memory() const;
  std::size_t memory_bytes() const;
  std::size_t slot_bytes() const { return slot_bytes_; }
  // Where a column begins in its slot, a multiple of 64. The last one is that of sources.
  const std::vector<std::size_t>& offsets() const { return offsets_; }

 private:
  struct Slot;
  struct Ring;

  void fill_slots();
  bool fill_one();
  Slot* free_slot();
  bool wait_for_rows(std::span<const double> shares);
  bool wait_for_limiter();
  void draw(Slot& slot);
  void put(Slot& slot);
  bool too_old(const Slot& slot) const;
  void fail();
  void require_process() const;

  Mixture& mixture_;
  const Options options_;
  std::vector<std::size_t> offsets_;
  std::size_t slot_bytes_ = 0;
  std::shared_ptr<Ring> ring_;
  std::mutex order_;  // held by the thread that decides on the next batch
  std::mutex closing_;
  std::vector<std::thread> threads_;
};

// One batch in a consumer's hands. Movable.
class BatchStream::Lease {
 public:
  Lease(Lease&& other) noexcept = default;
  Lease& operator=(Lease&&) = delete;
  ~Lease();

  std::uint64_t number() const;                        // 0 for the first batch of the stream
  std::byte* data() const;                             // of the slot
  const std::vector<std::uint64_t>& appended() const;  // see Mixture::Plan
  const std::vector<std::size_t>& counts() const;

 private:
  friend class BatchStream;
  Lease(std::shared_ptr<Ring> ring, Slot& slot) : ring_(std::move(ring)), slot_(&slot) {}

  std::shared_ptr<Ring> ring_;  // null once moved from
  Slot* slot_;
};

}  // namespace serl_fast
