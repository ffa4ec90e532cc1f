// Holds the ratio of sampled to inserted transitions, however fast the actor and the learner are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <mutex>

namespace serl_fast {

// Reverb's SampleToInsertRatio (Cassirer et al., "Reverb: a framework for experience replay", 2021,
// arXiv:2102.04736). With
//
//   cursor = inserted * samples_per_insert - sampled        target = min_size * samples_per_insert
//
// a call of k rows may go on when afterwards
//
//   sample: inserted >= min_size and cursor >= target - slack
//   insert: cursor <= target + slack, or inserted was < min_size, or block_inserts is false
//
// Deviation: inserts never wait before min_size is reached, even one that leaps far beyond it, since nobody
// may sample yet; the samples that follow bring the cursor back. Nor do inserts ever wait without
// block_inserts (a robot must not stop): the cursor then has no upper limit.
//
// Each side is served in order of arrival: a call waits behind the earlier ones of its side, so small calls
// do not starve a large one. Any thread may call anything; nobody may wait when the limiter is destroyed.
class RateLimiter {
 public:
  struct Options {
    std::size_t min_size;       // inserted rows before the first sample; >= 1
    double samples_per_insert;  // sampled rows for one inserted row; > 0. A batch of 256 counts 256.
    double slack;               // in sampled rows; infinity leaves min_size as the only rule
    bool block_inserts;
  };

  // Error for options out of range, and for a slack with which neither side could go on: with block_inserts
  // 2 * slack must be at least 1 + samples_per_insert, else at least 0.
  explicit RateLimiter(Options options);
  RateLimiter(const RateLimiter&) = delete;
  RateLimiter& operator=(const RateLimiter&) = delete;

  // Waits until `rows` rows may be inserted (sampled), counts them and returns true. Returns false and counts
  // nothing when `timeout` seconds have passed (0: does not wait; negative: no limit) or the limiter is
  // closed.
  //
  // With block_inserts the calls must fit each other, or both sides would wait for ever: Error, and nothing
  // is counted, unless largest sample + largest insert * samples_per_insert <= 2 * slack, over the calls
  // so far (those of inserts that go on before min_size apart). More rows than that go in several calls.
  bool insert(std::size_t rows, double timeout);
  bool sample(std::size_t rows, double timeout);

  // Whether the call would return true without waiting. Another thread may change that at any time.
  bool may_insert(std::size_t rows) const;
  bool may_sample(std::size_t rows) const;

  // Takes back a count whose operation failed afterwards. Error if fewer rows are counted.
  void undo_insert(std::size_t rows);
  void undo_sample(std::size_t rows);

  std::uint64_t inserted() const;
  std::uint64_t sampled() const;
  // Goes on from the counts of an earlier run, wherever its cursor was.
  void set_counts(std::uint64_t inserted, std::uint64_t sampled);

  // Wakes everybody who waits; they, and every insert and sample from then on, return false.
  void close();
  bool closed() const;

 private:
  struct Waiter;
  using Queue = std::list<Waiter*>;  // in order of arrival
  enum class Side { kInsert, kSample };

  bool admit(Side side, std::size_t rows, double timeout);
  bool allowed(Side side, std::size_t rows) const;
  void require_fit(Side side, std::size_t rows);
  void count(Side side, std::size_t rows);
  void serve();
  void undo(std::uint64_t& counted, std::size_t rows, const char* name);
  Queue& queue(Side side) { return side == Side::kInsert ? inserts_ : samples_; }
  const Queue& queue(Side side) const { return side == Side::kInsert ? inserts_ : samples_; }

  const Options options_;
  const double lowest_;       // cursor after a sample
  const double highest_;      // cursor after an insert
  mutable std::mutex mutex_;  // protects what follows
  std::uint64_t inserted_ = 0;
  std::uint64_t sampled_ = 0;
  std::size_t largest_insert_ = 1;
  std::size_t largest_sample_ = 1;
  bool closed_ = false;
  Queue inserts_;
  Queue samples_;
};

}  // namespace serl_fast
