// One appender, several samplers, one reader of the state: no transition is ever torn.
#include <atomic>
#include <thread>
#include <vector>

#include "check.h"
#include "rows.h"
#include "serl_fast/store.h"

using namespace serl_fast;
using namespace serl_fast::test;

namespace {

constexpr int kSteps = 4000;
constexpr std::size_t kStack = 2;
constexpr std::size_t kBatch = 16;

// Frames count modulo 256; the other numbers do not wrap, so a frame of the wrong round shows.
void check_batch(Rows& batch, std::atomic<int>& torn) {
  for (std::size_t row = 0; row < kBatch; ++row) {
    const int time = static_cast<int>(batch.as<float>(kRewards)[row]);
    if (!is_step(batch, row, time, time - time % 50, kStack)) ++torn;
  }
}

void no_torn_transition() {
  Store store(make_schema(kStack), 37, 1);  // small: the writer laps the samplers all the time
  append(store, one(0, 0, kStack));
  std::atomic<bool> done{false};
  std::atomic<int> torn{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&] {
      Rows batch(make_schema(kStack), kBatch, make_schema(kStack).columns_out());
      const auto columns = batch.pointers();
      while (!done) {
        store.sample(kBatch, 0.9F, columns);
        check_batch(batch, torn);
      }
    });
  }
  threads.emplace_back([&] {
    while (!done) {
      const State state = store.state();
      Store copy(make_schema(kStack), 37, 0);
      copy.load(state.view());  // throws where the parts contradict each other
    }
  });
  for (int step = 1; step < kSteps; ++step)
    append(store, one(step, step - step % 50, kStack, step % 50 == 49));
  done = true;
  for (std::thread& thread : threads) thread.join();
  CHECK(torn == 0);
  CHECK(store.appended() == kSteps);
}

}  // namespace

int main() {
  no_torn_transition();
  return serl_fast::test::summary();
}
