// Which steps are live, and who is reading them: how readers and the writer share rows without a lock.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>

namespace serl_fast {

class StoreFiles;

// Steps are numbered in the order in which they were appended; those of [begin, end) are live. The writer
// publishes a step by advancing `end` after its last byte, and gives one up by advancing `begin`. A reader
// pins the range: whatever was live then stays untouched until it leaves, because the writer reuses the rows
// of a step only when no pin is at that step or before it. So a reader never waits for an append and never
// sees a row change; the writer waits only where a reader stays while all spare rows are used up.
//
// Why this is enough: before it looks at the pins the writer stores `begin`, and after a reader has stored
// its pin it loads `begin`, all of them sequentially consistent. Either the writer sees the pin, or the
// reader sees that begin and stays away from the steps before it. (Between two such looks a plain release
// store of `begin` is enough: a reader that misses it takes more steps for live than are, and its pin says
// so.)
//
// Plain memory without pointers: it works in a file that several processes map.
struct LiveRange {
  static constexpr std::size_t kPins = 64;  // readers at once; more wait for one to leave

  // 0: free. Otherwise (1 + the oldest step that may be read) << kProcessBits | process number, in one word
  // so that a writer that waits for a dead reader can take away that reader's pin and no other.
  struct alignas(64) Pin {
    std::atomic<std::uint64_t> word{0};
  };
  static constexpr unsigned kProcessBits = 22;  // the largest process number of Linux is 2^22 - 1

  alignas(64) std::atomic<std::uint64_t> begin{0};
  alignas(64) std::atomic<std::uint64_t> end{0};
  std::atomic<std::uint32_t> closed{
      0};  // the process that rewrites the contents in place; readers wait. 0: none
  std::atomic<std::uint32_t> pins_used{0};
  std::array<Pin, kPins> pins{};

  // The live steps [first, second) of one instant, at most `capacity` of them. Never waits.
  std::pair<std::uint64_t, std::uint64_t> live(std::size_t capacity) const;
  // The first step that no reader can reach any more from below: every step before it may be overwritten.
  // At most `begin`. Writer only.
  std::uint64_t unread_before();
  // Frees pins of processes that are gone: what to do when waiting takes long.
  void release_dead();
};

// A reader's hold on the live steps, for as long as it exists. Any thread; waits only while the contents are
// rewritten in place (relabel, load) or more than kPins readers are at work.
class Reading {
 public:
  // `files`: those that the range lies in. They are put right where a writer was killed while it rewrote
  // them; throws Error where that cannot be done.
  Reading(LiveRange& range, std::size_t capacity, const StoreFiles* files = nullptr);
  ~Reading() { pin_->word.store(0, std::memory_order_release); }
  Reading(const Reading&) = delete;
  Reading& operator=(const Reading&) = delete;

  std::uint64_t begin() const { return begin_; }
  std::uint64_t end() const { return end_; }
  std::size_t size() const { return static_cast<std::size_t>(end_ - begin_); }

 private:
  LiveRange::Pin* pin_;
  std::uint64_t begin_;
  std::uint64_t end_;
};

// Keeps readers out while it exists. Made by the one writer; waits for the readers that are in.
class Rewriting {
 public:
  explicit Rewriting(LiveRange& range);
  ~Rewriting() { range_.closed.store(0); }
  Rewriting(const Rewriting&) = delete;
  Rewriting& operator=(const Rewriting&) = delete;

 private:
  LiveRange& range_;
};

// What a thread does between two looks at something that another one will change soon: it spins, then yields,
// then sleeps. Not a futex: those do not reach across processes.
class Backoff {
 public:
  void wait();
  bool long_since() const { return rounds_ > kPatience; }  // tens of milliseconds have passed
  // Once in so long: for what costs more than a look.
  bool time_to_act() const { return rounds_ > 0 && rounds_ % kPatience == 0; }

 private:
  static constexpr unsigned kPatience = 1000;
  unsigned rounds_ = 0;
};

}  // namespace serl_fast
