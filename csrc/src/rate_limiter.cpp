#include "serl_fast/rate_limiter.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <sstream>

#include "serl_fast/error.h"

namespace serl_fast {
namespace {

// Counts are exact; their product with a ratio like 0.1 is rounded. In sampled rows, enough for 1e9 of them.
constexpr double kRounding = 1e-6;
constexpr double kForever = 1e9;  // seconds; beyond this clocks overflow

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw Error(message.str());
}

RateLimiter::Options checked(RateLimiter::Options options) {
  const double ratio = options.samples_per_insert;
  if (options.min_size == 0) fail("min_size is 0; at least 1 is accepted");
  if (!(ratio > 0 && std::isfinite(ratio)))
    fail("samples_per_insert is ", ratio, "; finite numbers above 0 are accepted");
  const double least = options.block_inserts ? (1 + ratio) / 2 : 0;
  if (!(options.slack >= least))
    fail("slack is ", options.slack, "; at least ", least, " is accepted with samples_per_insert ", ratio,
         options.block_inserts ? " where inserts wait" : "");
  return options;
}

double target(const RateLimiter::Options& options) {
  return static_cast<double>(options.min_size) * options.samples_per_insert;
}

}  // namespace

// One call that waits, on its own stack. Who makes room counts the rows for it, so nobody can come between.
struct RateLimiter::Waiter {
  std::size_t rows;
  bool served = false;
  std::condition_variable wake{};
};

RateLimiter::RateLimiter(Options options)
    : options_(checked(options)),
      lowest_(target(options) - options.slack - kRounding),
      highest_(target(options) + options.slack + kRounding) {}

bool RateLimiter::insert(std::size_t rows, double timeout) { return admit(Side::kInsert, rows, timeout); }
bool RateLimiter::sample(std::size_t rows, double timeout) { return admit(Side::kSample, rows, timeout); }

bool RateLimiter::admit(Side side, std::size_t rows, double timeout) {
  if (std::isnan(timeout)) fail("timeout is nan; seconds are accepted, negative ones for no limit");
  std::unique_lock lock(mutex_);
  if (closed_) return false;
  require_fit(side, rows);
  Queue& waiting = queue(side);
  if (waiting.empty() && allowed(side, rows)) {
    count(side, rows);
    serve();
    return true;
  }
  if (timeout == 0) return false;

  Waiter self{rows};
  const auto place = waiting.insert(waiting.end(), &self);
  const auto decided = [&] { return self.served || closed_; };
  if (timeout < 0 || timeout > kForever) {
    self.wake.wait(lock, decided);
  } else {
    const auto wait = std::chrono::duration<double>(timeout);
    const auto ticks = std::chrono::duration_cast<std::chrono::steady_clock::duration>(wait);
    self.wake.wait_until(lock, std::chrono::steady_clock::now() + ticks, decided);
  }
  if (self.served) return true;
  waiting.erase(place);
  serve();  // a smaller call may have waited behind this one
  return false;
}

bool RateLimiter::allowed(Side side, std::size_t rows) const {
  if (side == Side::kSample) {
    const double cursor =
        static_cast<double>(inserted_) * options_.samples_per_insert - static_cast<double>(sampled_ + rows);
    return inserted_ >= options_.min_size && cursor >= lowest_;
  }
  if (!options_.block_inserts || inserted_ < options_.min_size) return true;
  const double cursor =
      static_cast<double>(inserted_ + rows) * options_.samples_per_insert - static_cast<double>(sampled_);
  return cursor <= highest_;
}

// If largest sample + largest insert * ratio <= 2 * slack, a cursor too low for one is low enough for the
// other, and one of the sides always goes on.
void RateLimiter::require_fit(Side side, std::size_t rows) {
  if (!options_.block_inserts || (side == Side::kInsert && inserted_ < options_.min_size)) return;
  std::size_t& largest = side == Side::kInsert ? largest_insert_ : largest_sample_;
  if (rows <= largest) return;
  const std::size_t inserts = side == Side::kInsert ? rows : largest_insert_;
  const std::size_t samples = side == Side::kSample ? rows : largest_sample_;
  const double needed =
      (static_cast<double>(samples) + static_cast<double>(inserts) * options_.samples_per_insert) / 2;
  if (needed > options_.slack + kRounding / 2)
    fail("slack is ", options_.slack, "; calls that sample ", samples, " rows and insert ", inserts,
         " could wait for each other for ever: at least ", needed, " is accepted, or fewer rows in a call");
  largest = rows;
}

void RateLimiter::count(Side side, std::size_t rows) {
  (side == Side::kInsert ? inserted_ : sampled_) += rows;
}

// Lets the first of each side go on while it may. After every change of the counts or of the queues.
void RateLimiter::serve() {
  if (closed_) return;
  for (bool progress = true; progress;) {
    progress = false;
    for (const Side side : {Side::kSample, Side::kInsert}) {
      Queue& waiting = queue(side);
      if (waiting.empty() || !allowed(side, waiting.front()->rows)) continue;
      Waiter& first = *waiting.front();
      waiting.pop_front();
      count(side, first.rows);
      first.served = true;
      first.wake.notify_one();  // under the lock: without it the waiter could be gone already
      progress = true;
    }
  }
}

bool RateLimiter::may_insert(std::size_t rows) const {
  const std::lock_guard lock(mutex_);
  return !closed_ && inserts_.empty() && allowed(Side::kInsert, rows);
}

bool RateLimiter::may_sample(std::size_t rows) const {
  const std::lock_guard lock(mutex_);
  return !closed_ && samples_.empty() && allowed(Side::kSample, rows);
}

void RateLimiter::undo_insert(std::size_t rows) { undo(inserted_, rows, "inserted"); }
void RateLimiter::undo_sample(std::size_t rows) { undo(sampled_, rows, "sampled"); }

void RateLimiter::undo(std::uint64_t& counted, std::size_t rows, const char* name) {
  const std::lock_guard lock(mutex_);
  if (rows > counted) fail("cannot take back ", rows, " rows; ", counted, " are ", name);
  counted -= rows;
  serve();
}

std::uint64_t RateLimiter::inserted() const {
  const std::lock_guard lock(mutex_);
  return inserted_;
}

std::uint64_t RateLimiter::sampled() const {
  const std::lock_guard lock(mutex_);
  return sampled_;
}

void RateLimiter::set_counts(std::uint64_t inserted, std::uint64_t sampled) {
  const std::lock_guard lock(mutex_);
  inserted_ = inserted;
  sampled_ = sampled;
  serve();
}

void RateLimiter::close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  for (const Queue* waiting : {&inserts_, &samples_})
    for (Waiter* waiter : *waiting) waiter->wake.notify_one();
}

bool RateLimiter::closed() const {
  const std::lock_guard lock(mutex_);
  return closed_;
}

}  // namespace serl_fast
