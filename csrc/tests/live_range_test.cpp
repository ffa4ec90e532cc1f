#include "serl_fast/live_range.h"

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/wait.h>
#include <unistd.h>
#endif

#include "check.h"

using namespace serl_fast;

namespace {

std::unique_ptr<LiveRange> range_of(std::uint64_t begin, std::uint64_t end) {
  auto range = std::make_unique<LiveRange>();
  range->begin = begin;
  range->end = end;
  return range;
}

void holds_what_was_live() {
  const auto range = range_of(5, 9);
  CHECK(range->unread_before() == 5);
  {
    const Reading reading(*range, 10);
    CHECK(reading.begin() == 5 && reading.end() == 9 && reading.size() == 4);
    range->end = 12;
    range->begin = 8;
    CHECK(range->unread_before() == 5);
    {
      const Reading later(*range, 10);
      CHECK(later.begin() == 8 && later.end() == 12);
      CHECK(range->unread_before() == 5);
    }
    CHECK(reading.begin() == 5 && reading.end() == 9);
  }
  CHECK(range->unread_before() == 8);
}

// The writer publishes the new step before it gives up the oldest.
void shows_no_more_than_the_capacity() {
  const auto range = range_of(5, 16);
  const Reading reading(*range, 10);
  CHECK(reading.begin() == 6 && reading.size() == 10);
}

void rewriting_waits_for_readers_and_keeps_new_ones_out() {
  const auto range = range_of(0, 4);
  std::atomic<int> stage{0};
  auto reading = std::make_unique<Reading>(*range, 10);
  std::thread writer([&] {
    const Rewriting rewriting(*range);
    stage = 1;
    while (stage == 1) std::this_thread::yield();
    range->end = 3;  // back, as after a load
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  CHECK(stage == 0);
  reading.reset();
  while (stage == 0) std::this_thread::yield();
  std::atomic<std::uint64_t> seen{0};
  std::thread reader([&] { seen = Reading(*range, 10).end(); });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  CHECK(seen == 0);
  stage = 2;
  writer.join();
  reader.join();
  CHECK(seen == 3);
}

void one_reader_too_many_waits() {
  const auto range = range_of(0, 4);
  std::vector<std::unique_ptr<Reading>> readings;
  for (std::size_t i = 0; i < LiveRange::kPins; ++i)
    readings.push_back(std::make_unique<Reading>(*range, 10));
  std::atomic<bool> in{false};
  std::thread last([&] {
    const Reading reading(*range, 10);
    in = true;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  CHECK(!in);
  readings.pop_back();
  last.join();
  CHECK(in);
}

#if defined(__unix__) || defined(__APPLE__)
void a_dead_process_lets_go() {
  const auto range = range_of(5, 9);
  const pid_t child = fork();
  if (child == 0) _exit(0);
  waitpid(child, nullptr, 0);
  range->pins_used = 2;
  range->pins[1].word = (std::uint64_t{4} << LiveRange::kProcessBits) | static_cast<std::uint64_t>(child);
  const Reading reading(*range, 10);
  CHECK(range->unread_before() == 3);
  range->release_dead();
  CHECK(range->unread_before() == 5);
  range->begin = 9;
  CHECK(range->unread_before() == 5);  // the living one holds on
}

void dead_readers_make_room() {
  const auto range = range_of(5, 9);
  const pid_t child = fork();
  if (child == 0) _exit(0);
  waitpid(child, nullptr, 0);
  for (LiveRange::Pin& pin : range->pins) {
    pin.word = (std::uint64_t{6} << LiveRange::kProcessBits) | static_cast<std::uint64_t>(child);
  }
  range->pins_used = LiveRange::kPins;
  const Reading reading(*range, 10);
  CHECK(reading.size() == 4);
}
#endif

// A row holds the number of its step, twice, as plain memory. The writer reuses a row as soon as no pin is
// before it; what a reader sees of the live steps is theirs.
void no_row_changes_under_a_reader() {
  constexpr std::uint64_t kCapacity = 8, kRows = 12;
  LiveRange range;
  struct Row {
    std::uint64_t one = 0, two = 0;
  };
  std::vector<Row> rows(kRows);
  std::atomic<bool> done{false};
  std::atomic<std::uint64_t> wrong{0}, looks{0};
  std::vector<std::thread> readers;
  for (int i = 0; i < 3; ++i) {
    readers.emplace_back([&] {
      while (!done) {
        const Reading reading(range, kCapacity);
        for (std::uint64_t id = reading.begin(); id < reading.end(); ++id) {
          const Row& row = rows[id % kRows];
          if (row.one != id || row.two != id) ++wrong;
          ++looks;
        }
        if (reading.size() > kCapacity) ++wrong;
      }
    });
  }
  const auto start = std::chrono::steady_clock::now();
  std::uint64_t id = 0;
  const auto goes_on = [&] {  // for a second, and where others take the processor until enough was done
    const auto took = std::chrono::steady_clock::now() - start;
    return took < std::chrono::seconds(1) ||
           ((id <= 1000 || looks <= 1000) && took < std::chrono::seconds(60));
  };
  for (; goes_on(); ++id) {
    Backoff backoff;
    while (id >= kRows && range.unread_before() <= id - kRows) backoff.wait();
    rows[id % kRows] = {id, id};
    range.end = id + 1;
    if (id + 1 > kCapacity) range.begin = id + 1 - kCapacity;
  }
  done = true;
  for (std::thread& reader : readers) reader.join();
  CHECK(wrong == 0);
  CHECK(id > 1000 && looks > 1000);
}

}  // namespace

int main() {
  holds_what_was_live();
  shows_no_more_than_the_capacity();
  rewriting_waits_for_readers_and_keeps_new_ones_out();
  one_reader_too_many_waits();
#if defined(__unix__) || defined(__APPLE__)
  a_dead_process_lets_go();
  dead_readers_make_room();
#endif
  no_row_changes_under_a_reader();
  return serl_fast::test::summary();
}
