#include "serl_fast/rate_limiter.h"

#include <atomic>
#include <chrono>
#include <cmath>
#include <limits>
#include <thread>
#include <vector>

#include "check.h"
#include "serl_fast/error.h"

using serl_fast::Error;
using serl_fast::RateLimiter;
using namespace std::chrono_literals;

namespace {

constexpr double kNoLimit = -1;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

double cursor(const RateLimiter& limiter, double ratio) {
  return static_cast<double>(limiter.inserted()) * ratio - static_cast<double>(limiter.sampled());
}

// target 20, slack 6: sample down to 14, insert up to 26.
void limits_by_hand() {
  RateLimiter limiter({.min_size = 10, .samples_per_insert = 2, .slack = 6, .block_inserts = true});
  CHECK(!limiter.may_sample(1));
  for (int i = 0; i < 9; ++i) CHECK(limiter.insert(1, 0));
  CHECK(!limiter.sample(1, 0));  // min_size is not reached, though the cursor is 18
  CHECK(limiter.insert(1, 0));
  CHECK(limiter.insert(3, 0));  // 26
  CHECK(!limiter.may_insert(1));
  CHECK(!limiter.insert(1, 0));
  CHECK(!limiter.insert(1, 0.001));
  CHECK(limiter.inserted() == 13);
  CHECK(limiter.sample(6, 0));  // 20
  CHECK(limiter.may_sample(6));
  CHECK(!limiter.may_sample(7));
  CHECK(limiter.sample(6, 0));  // 14
  CHECK(!limiter.sample(1, 0));
  CHECK(!limiter.sample(1, 0.001));
  CHECK(limiter.sampled() == 12);
  CHECK(limiter.may_insert(3));
}

void inserts_go_on_where_they_must_not_wait() {
  RateLimiter limiter({.min_size = 10, .samples_per_insert = 1, .slack = 4, .block_inserts = false});
  for (int i = 0; i < 1000; ++i) CHECK(limiter.insert(3, kNoLimit));
  CHECK(limiter.may_insert(1000000));
  CHECK(limiter.sample(2994, kNoLimit));  // larger than the slack, but there are enough rows
  CHECK(!limiter.sample(1, 0));
}

// Demonstrations go in at once; the samples that follow make up for them.
void one_long_insert_before_min_size() {
  RateLimiter limiter({.min_size = 100, .samples_per_insert = 1, .slack = 20, .block_inserts = true});
  CHECK(limiter.insert(99, 0));
  CHECK(limiter.insert(500, 0));
  CHECK(!limiter.insert(1, 0));
  for (int i = 0; i < 47; ++i) CHECK(limiter.sample(10, 0));  // 129
  CHECK(!limiter.insert(1, 0));
  CHECK(limiter.sample(10, 0));
  CHECK(limiter.insert(1, 0));  // 120
}

void slack_without_end_leaves_min_size() {
  RateLimiter limiter({.min_size = 2, .samples_per_insert = 1, .slack = kInfinity, .block_inserts = true});
  CHECK(limiter.insert(1, 0));
  CHECK(!limiter.sample(1, 0));
  CHECK(limiter.insert(100000, 0));
  CHECK(limiter.insert(100000, 0));
  CHECK(limiter.sample(1000000, 0));
}

// 10 k * 1.1 is rounded to more than 11 k for some k, 10 k * 0.7 to less than 7 k: calls that just fit do
// fit.
void rounding_does_not_stop_either_side() {
  for (const std::size_t batch : {11U, 7U}) {
    const double slack = static_cast<double>(batch);
    RateLimiter limiter(
        {.min_size = 10, .samples_per_insert = slack / 10, .slack = slack, .block_inserts = true});
    CHECK(limiter.insert(10, 0));
    for (int i = 0; i < 20000; ++i) {
      CHECK(limiter.insert(10, 0));  // to the upper border
      CHECK(limiter.sample(batch, 0));
      CHECK(limiter.sample(batch, 0));  // to the lower one
      CHECK(limiter.insert(10, 0));
    }
  }
}

void refuses_what_could_wait_for_ever() {
  using Options = RateLimiter::Options;
  CHECK_THROWS(RateLimiter(Options{0, 1, 10, true}), Error, "min_size is 0");
  for (const double ratio : {0.0, -1.0, kInfinity, std::nan("")})
    CHECK_THROWS(RateLimiter(Options{1, ratio, 10, true}), Error, "above 0");
  CHECK_THROWS(RateLimiter(Options{1, 3, 1.9, true}), Error, "at least 2 is accepted");
  CHECK_THROWS(RateLimiter(Options{1, 3, -1, false}), Error, "at least 0 is accepted");
  CHECK_THROWS(RateLimiter(Options{1, 3, std::nan(""), false}), Error, "slack is nan");
  const RateLimiter least(Options{1, 3, 0, false});

  RateLimiter limiter(Options{10, 1, 50, true});
  CHECK_THROWS(limiter.sample(100, 0), Error, "at least 50.5");
  CHECK(limiter.insert(200, 0));  // before min_size
  CHECK(limiter.sample(90, 0));
  CHECK_THROWS(limiter.insert(11, 0), Error, "sample 90 rows and insert 11");
  CHECK(limiter.inserted() == 200);
  CHECK(limiter.sample(90, 0));
  CHECK(limiter.insert(10, 0));
  CHECK_THROWS(limiter.sample(91, 0), Error, "slack is 50");
  CHECK(limiter.sampled() == 180);
  CHECK_THROWS(limiter.sample(1, std::nan("")), Error, "timeout is nan");
}

void undo_and_set_counts() {
  RateLimiter limiter({.min_size = 10, .samples_per_insert = 1, .slack = 4, .block_inserts = true});
  CHECK(limiter.insert(14, 0));
  CHECK(!limiter.may_insert(1));
  limiter.undo_insert(1);
  CHECK(limiter.inserted() == 13);
  CHECK(limiter.insert(1, 0));
  CHECK(limiter.sample(5, 0));
  limiter.undo_sample(5);
  CHECK(limiter.sampled() == 0);
  CHECK_THROWS(limiter.undo_sample(1), Error, "0 are sampled");
  CHECK_THROWS(limiter.undo_insert(15), Error, "14 are inserted");
  limiter.set_counts(1000, 994);  // 6, as low as it goes
  CHECK(limiter.inserted() == 1000);
  CHECK(limiter.sampled() == 994);
  CHECK(!limiter.may_sample(1));
  CHECK(limiter.may_insert(8));
  limiter.set_counts(1000, 0);  // far out: the samples have to follow
  CHECK(!limiter.may_insert(1));
  CHECK(limiter.may_sample(5));
}

void undo_and_set_counts_wake_those_who_wait() {
  RateLimiter limiter({.min_size = 10, .samples_per_insert = 1, .slack = 4, .block_inserts = true});
  CHECK(limiter.insert(14, 0));
  std::thread inserter([&] { CHECK(limiter.insert(1, kNoLimit)); });
  std::this_thread::sleep_for(10ms);
  limiter.undo_insert(1);
  inserter.join();
  CHECK(limiter.inserted() == 14);
  std::thread restored([&] { CHECK(limiter.insert(1, kNoLimit)); });
  std::this_thread::sleep_for(10ms);
  limiter.set_counts(50, 45);
  restored.join();
  CHECK(limiter.inserted() == 51);
}

void timeout_counts_nothing() {
  RateLimiter limiter({.min_size = 10, .samples_per_insert = 1, .slack = 4, .block_inserts = true});
  const auto start = std::chrono::steady_clock::now();
  CHECK(!limiter.sample(1, 0.05));
  CHECK(std::chrono::steady_clock::now() - start >= 50ms);
  CHECK(limiter.sampled() == 0);
  CHECK(limiter.insert(14, 1e300));
  CHECK(!limiter.insert(1, 0.01));
  CHECK(limiter.inserted() == 14);
  CHECK(limiter.sample(4, 0.01));
}

// A small call waits behind a large one of its side, and goes on when that one gives up.
void served_in_order_of_arrival() {
  RateLimiter limiter({.min_size = 10, .samples_per_insert = 1, .slack = 8, .block_inserts = true});
  CHECK(limiter.insert(10, 0));
  CHECK(limiter.sample(8, 0));  // 2, as low as it goes
  std::atomic<bool> large_done{false};
  std::thread large([&] {
    CHECK(limiter.sample(12, kNoLimit));
    large_done = true;
  });
  CHECK(limiter.insert(1, 0));
  while (limiter.may_sample(1)) std::this_thread::yield();  // until the large call waits
  for (int i = 0; i < 10; ++i) {
    CHECK(limiter.insert(1, 0));
    CHECK(!limiter.may_sample(1));  // there are rows enough, but they are the large call's
    CHECK(!limiter.sample(1, 0));
  }
  CHECK(!large_done);
  CHECK(limiter.insert(1, 0));
  large.join();
  CHECK(limiter.sampled() == 20);

  std::thread gives_up([&] { CHECK(!limiter.sample(12, 0.1)); });
  std::this_thread::sleep_for(20ms);
  CHECK(limiter.insert(1, 0));
  CHECK(limiter.sample(1, kNoLimit));  // behind it
  gives_up.join();
  CHECK(limiter.sampled() == 21);
}

void close_wakes_everybody() {
  RateLimiter limiter({.min_size = 10, .samples_per_insert = 1, .slack = 4, .block_inserts = true});
  CHECK(limiter.insert(14, 0));
  CHECK(limiter.sample(4, 0));
  CHECK(limiter.sample(4, 0));
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) threads.emplace_back([&] { CHECK(!limiter.sample(1, kNoLimit)); });
  for (int i = 0; i < 3; ++i) threads.emplace_back([&] { CHECK(!limiter.sample(1, 100)); });
  std::this_thread::sleep_for(20ms);
  CHECK(!limiter.closed());
  limiter.close();
  for (std::thread& thread : threads) thread.join();
  CHECK(limiter.closed());
  CHECK(limiter.inserted() == 14);
  CHECK(limiter.sampled() == 8);
  CHECK(!limiter.may_insert(1));
  CHECK(!limiter.insert(1, kNoLimit));
  CHECK(!limiter.sample(1, kNoLimit));
  limiter.close();
}

// The large call leaves the queue, and the small one behind it would fit; it is refused all the same.
void nobody_is_served_after_close() {
  for (int i = 0; i < 20; ++i) {
    RateLimiter limiter({.min_size = 10, .samples_per_insert = 1, .slack = 8, .block_inserts = true});
    CHECK(limiter.insert(11, 0));
    std::thread large([&] { CHECK(!limiter.sample(12, kNoLimit)); });
    while (limiter.may_sample(1)) std::this_thread::yield();  // until it waits
    std::thread small([&] { CHECK(!limiter.sample(1, kNoLimit)); });
    std::this_thread::sleep_for(1ms);
    limiter.close();
    large.join();
    small.join();
    CHECK(limiter.sampled() == 0);
  }
}

// Several of each side without pause: nobody is left waiting, and the cursor never leaves the slack.
void threads_keep_the_ratio() {
  constexpr double kRatio = 2.5, kSlack = 24;
  constexpr std::size_t kMinSize = 40, kInserts = 4000;
  RateLimiter limiter(
      {.min_size = kMinSize, .samples_per_insert = kRatio, .slack = kSlack, .block_inserts = true});
  constexpr std::size_t kInsertRows[] = {1, 3, 5};
  constexpr std::size_t kSampleRows[] = {1, 8, 32};
  std::vector<std::thread> inserters, samplers;
  std::atomic<std::uint64_t> inserted{0}, sampled{0};
  for (const std::size_t rows : kInsertRows) {
    inserters.emplace_back([&, rows] {
      for (std::size_t i = 0; i < kInserts; ++i) {
        const bool done = limiter.insert(rows, kNoLimit);
        CHECK(done);
        inserted += rows;
      }
    });
  }
  for (const std::size_t rows : kSampleRows) {
    samplers.emplace_back([&, rows] {
      for (int i = 0;; ++i) {
        const double timeout = i % 4 == 0 ? 1e-5 : kNoLimit;
        if (limiter.sample(rows, timeout))
          sampled += rows;
        else if (limiter.closed())
          break;
      }
    });
  }
  for (std::thread& thread : inserters) thread.join();
  // With no more inserts the samplers go on until the first of them no longer fits.
  const double lowest = kMinSize * kRatio - kSlack;
  while (limiter.may_sample(1)) std::this_thread::yield();
  limiter.close();
  for (std::thread& thread : samplers) thread.join();
  CHECK(limiter.inserted() == inserted);
  CHECK(limiter.sampled() == sampled);
  CHECK(inserted == (1 + 3 + 5) * kInserts);
  CHECK(cursor(limiter, kRatio) >= lowest - 1e-6);
  CHECK(cursor(limiter, kRatio) <= lowest + 2 * kSlack + 1e-6);
}

// One inserter and one sampler with the least slack that their calls may have.
void least_slack_does_not_deadlock() {
  RateLimiter limiter({.min_size = 7, .samples_per_insert = 0.7, .slack = 6.75, .block_inserts = true});
  std::thread inserter([&] {
    for (int i = 0; i < 20000; ++i) {
      const bool done = limiter.insert(5, kNoLimit);
      CHECK(done);
    }
  });
  for (int i = 0; i < 6900; ++i) {  // 69000 of 70000
    const bool done = limiter.sample(10, kNoLimit);
    CHECK(done);
  }
  for (int i = 0; i < 100; ++i) limiter.sample(10, 0.01);
  limiter.sample(1, 0.01);
  inserter.join();
  CHECK(limiter.inserted() == 100000);
  CHECK(std::abs(cursor(limiter, 0.7) - 4.9) <= 6.75 + 1e-6);
}

}  // namespace

int main() {
  limits_by_hand();
  inserts_go_on_where_they_must_not_wait();
  one_long_insert_before_min_size();
  slack_without_end_leaves_min_size();
  rounding_does_not_stop_either_side();
  refuses_what_could_wait_for_ever();
  undo_and_set_counts();
  undo_and_set_counts_wake_those_who_wait();
  timeout_counts_nothing();
  served_in_order_of_arrival();
  close_wakes_everybody();
  nobody_is_served_after_close();
  threads_keep_the_ratio();
  least_slack_does_not_deadlock();
  return serl_fast::test::summary();
}
