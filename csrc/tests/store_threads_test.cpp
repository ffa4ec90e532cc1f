// Four appenders, four samplers, one who relabels, one reader of the state: no transition is ever torn.
#include <atomic>
#include <chrono>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "rows.h"
#include "serl_fast/sampler.h"
#include "serl_fast/store.h"

using namespace serl_fast;
using namespace serl_fast::test;

namespace {

constexpr std::size_t kStack = 2;
constexpr std::size_t kBatch = 16;
constexpr std::size_t kCapacity = 37;  // small: the writers lap the samplers all the time
constexpr std::size_t kMany = 9;
constexpr int kRange = 1'000'000;  // writer w counts from w * kRange; sums of 3 stay exact in float32

// Episodes of 50 steps; stacks reach back to the first of them.
Rows steps_from(int time, std::size_t count) {
  const Schema schema = make_schema(kStack);
  Rows rows(schema, count, schema.columns_in());
  for (std::size_t i = 0; i < count; ++i) {
    const int at = time + static_cast<int>(i);
    fill(rows, i, at, at - at % 50, kStack, false, at % 50 == 49);
  }
  return rows;
}

// Element `row` of the column with that name equals the one of the step at `time`. Frames count modulo 256;
// the other numbers do not wrap, so a frame of the wrong round shows.
bool holds(const Layout& layout, Rows& batch, const std::string& name, std::size_t input, std::size_t row,
           int time) {
  Rows expected = steps_from(time, 1);
  for (std::size_t c = 0; c < layout.columns.size(); ++c) {
    if (layout.columns[c].field.name != name) continue;
    const std::size_t bytes = layout.columns[c].field.row_bytes();
    const std::byte* given = batch.memory[c].data() + row * bytes;
    return std::equal(given, given + bytes, expected.memory[input].data());
  }
  return false;
}

// Actions are relabelled from (n, n) to (-n, -n): both or neither.
int time_of(Rows& batch, const Layout& layout, std::size_t row, bool& whole) {
  std::size_t c = 0;
  while (layout.columns[c].field.name != "actions") ++c;
  const auto* actions = batch.as<std::int64_t>(c) + 2 * row;
  whole = whole && actions[0] == actions[1];
  return static_cast<int>(std::abs(actions[0]));
}

bool is_whole(Rows& batch, const Layout& layout, const View& view) {
  bool whole = true;
  for (std::size_t row = 0; row < kBatch; ++row) {
    const std::size_t length = std::max<std::size_t>(1, view.length);
    const std::string look = view.length > 0 ? "full_observations" : "observations";
    for (std::size_t k = row * length; k < (row + 1) * length; ++k) {
      const int time = time_of(batch, layout, k, whole);
      whole = whole && holds(layout, batch, look + "/front", kFront, k, time) &&
              holds(layout, batch, look + "/state", kVector, k, time);
      int last = time;
      if (view.n_step > 1) {
        last = static_cast<int>(batch.as<float>(kNextVector)[row * kState]) - 1;
        int sum = 0;
        for (int at = time; at <= last; ++at) sum += at;
        whole = whole && last - time < static_cast<int>(view.n_step) &&
                batch.as<float>(kRewards)[row] == static_cast<float>(sum);
      }
      whole = whole && holds(layout, batch, "next_observations/front", kNextFront, k, last) &&
              holds(layout, batch, "next_observations/state", kNextVector, k, last);
    }
  }
  return whole;
}

class Stress {
 public:
  Stress() : store_(make_schema(kStack), kCapacity, 1) {
    append(store_, steps_from(0, 20));
    store_.prioritize({});
  }

  void run(std::chrono::milliseconds duration) {
    const View views[] = {
        {}, {.discount = 1.0, .n_step = 3}, {.length = 4}, {.length = 4, .pad = Pad::kLast}};
    const Order orders[] = {Order::kPrioritized, Order::kUniform, Order::kEpoch, Order::kUniform};
    for (int i = 0; i < 4; ++i) {
      start([this, i, time = i * kRange + 50]() mutable { write(i, time); });
      start([this, sampler = std::make_shared<Sampler>(store_, views[i], orders[i], 0.5)] {
        sample(*sampler);
      });
    }
    start([this] { relabel(); });
    start([this] { copy_state(); });
    start([this, next = std::uint64_t{0}]() mutable { follow(next); });
    std::this_thread::sleep_for(duration);
    const auto enough = [this] { return written_ > 100 && samples_ > 50 && relabelled_ > 0; };
    for (int i = 0; i < 600 && !enough() && torn_ == 0; ++i) {  // others may be at work on this machine
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
    done_ = true;
    for (std::thread& thread : threads_) thread.join();
    CHECK(torn_ == 0);
    CHECK(store_.size() == kCapacity);
    CHECK(store_.appended() == 20 + written_);
    CHECK(enough());
  }

 private:
  void start(std::function<void()> work) {
    threads_.emplace_back([this, work = std::move(work)] {
      while (!done_) work();
    });
  }

  void write(int writer, int& time) {
    const std::size_t count = writer % 2 == 0 ? 1 : kMany;
    append(store_, steps_from(time, count));
    written_ += count;
    time += static_cast<int>(count);
  }

  void sample(Sampler& sampler) {
    Rows batch(sampler.layout(), kBatch);
    try {
      sampler.sample(kBatch, batch.pointers());
    } catch (const std::exception& error) {
      ++torn_;
      std::fprintf(stderr, "%s\n", error.what());
      return;
    }
    if (!is_whole(batch, sampler.layout(), sampler.layout().view)) ++torn_;
    ++samples_;
    if (sampler.order() != Order::kPrioritized) return;
    const std::vector<float> errors(kBatch, static_cast<float>(samples_ % 7));
    store_.update_priorities(std::span(batch.as<std::int64_t>(kIds), kBatch), errors);
  }

  // The steps do not change between looking at them and relabelling, or they are no longer live.
  void relabel() {
    const Layout layout(store_.schema(), View{});
    Rows batch(layout, 2);
    const std::int64_t ages[] = {3, 30};
    if (store_.size() < kCapacity) return;
    store_.gather(ages, layout, batch.pointers());
    std::vector<std::int64_t> negative;
    for (std::size_t i = 0; i < 4; ++i) negative.push_back(-batch.as<std::int64_t>(kActions)[i]);
    relabelled_ +=
        store_.relabel(store_.schema().step_index("actions"), std::span(batch.as<std::int64_t>(kIds), 2),
                       reinterpret_cast<const std::byte*>(negative.data()));
  }

  void copy_state() {
    const State state = store_.state();
    Store copy(make_schema(kStack), kCapacity, 0);
    copy.load(state.view());  // throws where the parts contradict each other
  }

  // Every step's newest record is its next observation, and the one before it its observation.
  void follow(std::uint64_t& next) {
    constexpr std::size_t kSteps = 40, kRecords = kSteps * (kStack + 1);
    std::vector<std::byte> marks(kSteps);
    std::vector<float> states(kRecords * kState), rewards(kSteps);
    const StateSpace to{kSteps,
                        kRecords,
                        marks.data(),
                        {nullptr, reinterpret_cast<std::byte*>(states.data())},
                        {nullptr, reinterpret_cast<std::byte*>(rewards.data()), nullptr, nullptr}};
    const Excerpt part = store_.copy_steps(next, to);
    std::size_t record = 0;
    bool whole = part.first >= next && part.first + part.steps <= store_.appended();
    for (std::size_t step = 0; step < part.steps; ++step) {
      const bool continues = marks[step] != std::byte{0};
      record += continues ? 1 : kStack + 1;
      for (std::size_t i = 0; i < kState; ++i) {
        whole = whole && states[(record - 1) * kState + i] == rewards[step] + 1;
        whole = whole && (record < 2 || states[(record - 2) * kState + i] == rewards[step]);
      }
    }
    if (!whole || record != part.records) ++torn_;
    next = part.first + part.steps;
  }

  Store store_;
  std::atomic<bool> done_{false};
  std::atomic<std::uint64_t> torn_{0}, written_{0}, samples_{0}, relabelled_{0};
  std::vector<std::thread> threads_;
};

}  // namespace

int main(int argc, char** argv) {
  const int seconds = argc > 1 ? std::stoi(argv[1]) : 3;
  Stress().run(std::chrono::seconds(seconds));
  return serl_fast::test::summary();
}
