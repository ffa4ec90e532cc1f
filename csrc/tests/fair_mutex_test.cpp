#include "serl_fast/fair_mutex.h"

#include <chrono>
#include <mutex>
#include <thread>
#include <vector>

#include "check.h"

using serl_fast::FairSharedMutex;
using namespace std::chrono_literals;

namespace {

// Readers that leave no gap between them would lock a writer out of a plain reader-writer lock.
void readers_do_not_starve_a_writer() {
  FairSharedMutex mutex;
  std::atomic<bool> stop{false};
  std::vector<std::thread> readers;
  for (int i = 0; i < 3; ++i) {
    readers.emplace_back([&] {
      while (!stop) {
        const std::shared_lock lock(mutex);
        std::this_thread::sleep_for(1ms);
      }
    });
  }
  std::this_thread::sleep_for(5ms);
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < 50; ++i) const std::unique_lock lock(mutex);
  const auto taken = std::chrono::steady_clock::now() - start;
  stop = true;
  for (std::thread& reader : readers) reader.join();
  CHECK(taken < 10s);  // 50 waits of about 1 ms
}

void writers_exclude_each_other_and_readers() {
  FairSharedMutex mutex;
  long long first = 0;
  long long second = 0;
  bool equal = true;
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([&] {
      for (int k = 0; k < 5000; ++k) {
        const std::unique_lock lock(mutex);
        ++first;
        ++second;
      }
    });
  }
  threads.emplace_back([&] {
    for (int k = 0; k < 5000; ++k) {
      const std::shared_lock lock(mutex);
      equal = equal && first == second;
    }
  });
  for (std::thread& thread : threads) thread.join();
  CHECK(first == 10000);
  CHECK(equal);
}

}  // namespace

int main() {
  readers_do_not_starve_a_writer();
  writers_exclude_each_other_and_readers();
  return serl_fast::test::summary();
}
