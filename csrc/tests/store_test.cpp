#include "serl_fast/store.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>

#include "check.h"
#include "rows.h"
#include "serl_fast/sampler.h"

using namespace serl_fast;
using namespace serl_fast::test;

namespace {

Rows all(const Store& store) {
  const Layout layout(store.schema(), View{.discount = 0.5});
  Rows batch(layout, store.size());
  std::vector<std::int64_t> ages(store.size());
  std::iota(ages.begin(), ages.end(), 0);
  store.gather(ages, layout, batch.pointers());
  return batch;
}

// Episodes of 7 steps through a store of 10, each step checked after each append.
void wraps_around_without_a_wrong_frame() {
  for (const std::size_t stack : {1, 2, 4}) {
    Store store(make_schema(stack), 10, 0);
    for (int step = 0; step < 70; ++step) {
      append(store, one(step, step - step % 7, stack, false, step % 7 == 6));
      Rows batch = all(store);
      for (int row = 0; row < static_cast<int>(store.size()); ++row) {
        const int time = step + 1 - static_cast<int>(store.size()) + row;
        CHECK(is_step(batch, static_cast<std::size_t>(row), time, time - time % 7, stack));
      }
    }
    CHECK(store.size() == 10);
    CHECK(store.appended() == 70);
  }
}

// Every step a stretch of its own is the worst case: it, too, keeps `capacity` steps.
void keeps_the_capacity_with_the_shortest_stretches() {
  for (const std::size_t capacity : {1, 2, 5}) {
    Store store(make_schema(3), capacity, 0);
    for (int step = 0; step < 20; ++step) append(store, one(step, 0, 3), Continues::kNo);
    CHECK(store.size() == capacity);
    Rows batch = all(store);
    for (std::size_t row = 0; row < capacity; ++row) {
      CHECK(is_step(batch, row, 20 - static_cast<int>(capacity) + static_cast<int>(row), 0, 3));
    }
  }
}

void stores_each_observation_once() {
  Store whole(make_schema(), 100, 0);
  Store split(make_schema(), 100, 0);
  for (int step = 0; step < 100; ++step) {
    append(whole, one(step, 0));
    append(split, one(step, 0), Continues::kNo);
  }
  CHECK(whole.state().records == 101);
  CHECK(split.state().records == 200);
  CHECK(whole.bytes_used() < split.bytes_used());
}

void continuity_is_checked() {
  Store store(make_schema(), 10, 0);
  CHECK_THROWS(append(store, one(0, 0), Continues::kYes), Error, "the store is empty");
  append(store, one(0, 0));
  CHECK_THROWS(append(store, one(2, 0), Continues::kYes), Error, "field 'observations/front' differs");
  append(store, one(1, 0, 1, true), Continues::kYes);
  CHECK_THROWS(append(store, one(2, 0), Continues::kYes), Error, "the previous step was terminated");
  append(store, one(2, 0, 1, false, true));
  CHECK_THROWS(append(store, one(3, 0), Continues::kYes), Error, "the previous step was truncated");
  CHECK(store.size() == 3);
}

void an_error_stores_nothing() {
  Store store(make_schema(), 4, 0);
  append(store, one(0, 0));
  const Schema schema = make_schema();
  Rows rows(schema, 3, schema.columns_in());
  for (std::size_t i = 0; i < 3; ++i) fill(rows, i, static_cast<int>(i) + 1, 0, 1);
  const std::vector<Continues> wishes = {Continues::kYes, Continues::kYes, Continues::kYes};
  rows.as<float>(kVector)[2 * kState] = 77.0F;
  CHECK_THROWS(store.append(rows.const_pointers(), 3, wishes), Error, "row 2: continues is True");
  rows.as<float>(kRewards)[2] = std::numeric_limits<float>::infinity();
  CHECK_THROWS(store.append(rows.const_pointers(), 3, {}), Error, "(inf) in row 2");
  CHECK(store.size() == 1);
  CHECK(store.appended() == 1);
  fill(rows, 2, 3, 0, 1);
  store.append(rows.const_pointers(), 3, wishes);
  CHECK(store.state().records == 5);
}

// Whether a row continues is decided by comparing, and what continues is not looked at number by number.
void refuses_observations_that_are_not_finite() {
  Store store(make_schema(), 4, 0);
  const auto wrong = [](int time) {
    Rows row = one(time, 0);
    row.as<float>(kVector)[kState - 1] = std::numeric_limits<float>::quiet_NaN();
    return row;
  };
  const std::string message = "field 'observations/state' holds a non-finite value (nan)";
  for (int time = 0; time < 2; ++time) {  // into an empty store, and behind a step
    for (const Continues wish : {Continues::kNo, Continues::kYes, Continues::kDecide}) {
      CHECK_THROWS(append(store, wrong(time), wish), Error, message);
    }
    append(store, one(time, 0));
  }
  const Schema schema = make_schema();
  Rows rows(schema, 3, schema.columns_in());
  for (std::size_t i = 0; i < 3; ++i) fill(rows, i, static_cast<int>(i) + 2, 0, 1);
  rows.as<float>(kVector)[2 * kState] = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS(store.append(rows.const_pointers(), 3, {}), Error, message + " in row 2");
  CHECK(store.appended() == 2);
}

void sampling() {
  Store store(make_schema(), 10, 5);
  const View view{.discount = 0.5};
  Sampler sampler(store, view, Order::kUniform, 0.4);
  Rows batch(sampler.layout(), 64);
  CHECK_THROWS(sampler.sample(64, batch.pointers()), Error, "empty");
  CHECK(store.draws() == 0);
  for (int step = 0; step < 13; ++step) append(store, one(step, 0, 1, step % 5 == 4));
  CHECK_THROWS(Sampler(store, View{.discount = 1.5}, Order::kUniform, 0.4), Error, "discount");
  sampler.sample(64, batch.pointers());
  CHECK(store.draws() == 1);
  for (std::size_t row = 0; row < 64; ++row) {
    const int time = static_cast<int>(batch.as<float>(kRewards)[row]);
    CHECK(time >= 3 && time < 13);
    CHECK(is_step(batch, row, time, 0, 1));
    const float mask = time % 5 == 4 ? 0.0F : 1.0F;
    CHECK(batch.as<float>(kMasks)[row] == mask);
    CHECK(batch.as<float>(kDiscounts)[row] == 0.5F * mask);
    CHECK(batch.as<std::int64_t>(kIds)[row] == time);
    CHECK(batch.as<float>(kWeights)[row] == 1.0F);
  }
  Rows again(sampler.layout(), 64);
  store.set_draws(0);
  sampler.sample(64, again.pointers());
  CHECK(again.memory == batch.memory);
  const std::int64_t outside = 10;
  CHECK_THROWS(store.gather(std::span(&outside, 1), sampler.layout(), batch.pointers()), std::out_of_range,
               "index 10");
}

void relabels_live_steps_only() {
  Store store(make_schema(), 4, 0);
  for (int step = 0; step < 6; ++step) append(store, one(step, 0));  // 2 to 5 are live
  const std::size_t rewards = store.schema().step_index("rewards");
  const std::vector<std::int64_t> ids = {1, 2, 5, 6, -1};
  const std::vector<float> values = {-1.0F, -2.0F, -5.0F, -6.0F, -7.0F};
  CHECK(store.relabel(rewards, ids, reinterpret_cast<const std::byte*>(values.data())) == 2);
  Rows batch = all(store);
  const std::vector<float> expected = {-2.0F, 3.0F, 4.0F, -5.0F};
  CHECK(std::equal(expected.begin(), expected.end(), batch.as<float>(kRewards)));
  const std::size_t ends = store.schema().step_index("terminated");
  CHECK_THROWS(store.relabel(ends, ids, reinterpret_cast<const std::byte*>(values.data())), Error,
               "says where episodes end");
  const std::vector<float> endless(5, std::numeric_limits<float>::infinity());
  CHECK_THROWS(store.relabel(rewards, ids, reinterpret_cast<const std::byte*>(endless.data())), Error,
               "(inf)");
  CHECK(all(store).memory == batch.memory);
}

void finds_the_starts_of_episodes() {
  Store store(make_schema(), 6, 0);
  for (int step = 0; step < 8; ++step) append(store, one(step, 0, 1, step == 3, step == 5));
  append(store, one(20, 0));  // 3 to 7 are live before it
  const Reading reading = store.reading();
  CHECK(reading.begin() == 3 && reading.end() == 9);
  CHECK((store.episode_starts(reading) == std::vector<std::int64_t>{0, 1, 3, 5}));
  CHECK((store.continues(reading) == std::vector<std::uint8_t>{0, 0, 1, 0, 1, 0}));
}

void state_round_trip() {
  for (const std::size_t stack : {1, 3}) {
    Store store(make_schema(stack), 10, 9);
    for (int step = 0; step < 25; ++step) {
      append(store, one(step, step - step % 4, stack, step % 4 == 3),
             step == 18 ? Continues::kNo : Continues::kDecide);
    }
    const State state = store.state();
    Store copy(make_schema(stack), 10, 0);
    append(copy, one(99, 0, stack));
    copy.load(state.view());
    CHECK(all(copy).memory == all(store).memory);
    CHECK(copy.appended() == 25);
    CHECK(copy.seed() == 9);
    append(copy, one(25, 24, stack), Continues::kYes);  // goes on where the original stood
    CHECK(copy.size() == 10);
    Store small(make_schema(stack), 9, 0);
    CHECK_THROWS(small.load(state.view()), Error, "capacity is 9");
    StateView wrong = state.view();
    ++wrong.records;
    CHECK_THROWS(copy.load(wrong), Error, "inconsistent");
  }
}

// A copy that is fed by copy_steps, in parts of at most 3 steps and 7 records, has the state of the store.
void copies_steps_once() {
  for (const std::size_t stack : {1, 2}) {
    Store store(make_schema(stack), 10, 0);
    std::vector<std::vector<std::byte>> records(2), steps(4);  // all that came, by field
    std::vector<std::byte> marks;
    std::uint64_t next = 0;
    const auto take = [&] {
      const std::size_t frame_bytes[] = {kPixels, kState * sizeof(float)};
      const std::size_t step_bytes[] = {2 * sizeof(std::int64_t), sizeof(float), 1, 1};
      std::vector<std::byte> part_marks(3);
      std::vector<std::vector<std::byte>> part_records(2), part_steps(4);
      StateSpace to{3, 7, part_marks.data(), {}, {}};
      for (std::size_t f = 0; f < 2; ++f) part_records[f].resize(7 * frame_bytes[f]);
      for (std::size_t f = 0; f < 4; ++f) part_steps[f].resize(3 * step_bytes[f]);
      for (auto& column : part_records) to.record_columns.push_back(column.data());
      for (auto& column : part_steps) to.step_columns.push_back(column.data());
      const Excerpt part = store.copy_steps(next, to);
      CHECK(part.first >= next && part.steps <= 3 && part.records <= 7);
      CHECK(part.steps > 0 || next == store.appended());
      next = part.first + part.steps;
      const auto add = [](auto& all, const auto& more, std::size_t bytes) {
        all.insert(all.end(), more.begin(), more.begin() + static_cast<std::ptrdiff_t>(bytes));
      };
      add(marks, part_marks, part.steps);
      for (std::size_t f = 0; f < 2; ++f) add(records[f], part_records[f], part.records * frame_bytes[f]);
      for (std::size_t f = 0; f < 4; ++f) add(steps[f], part_steps[f], part.steps * step_bytes[f]);
    };
    for (int step = 0; step < 9; ++step) {
      append(store, one(step, step - step % 4, stack, false, step % 4 == 3),
             step == 6 ? Continues::kNo : Continues::kDecide);
      if (step % 3 == 1) take();
    }
    while (next < store.appended()) take();
    const State state = store.state();
    const auto equal = [](const std::vector<std::byte>& mine, const std::byte* theirs, std::size_t bytes) {
      return mine.size() == bytes && std::equal(mine.begin(), mine.end(), theirs);
    };
    CHECK(equal(marks, state.continues.data(), state.steps));
    CHECK(equal(records[0], state.record_columns[0].data(), state.records * kPixels));
    CHECK(equal(steps[1], state.step_columns[1].data(), state.steps * sizeof(float)));
    if (stack == 1) CHECK(equal(records[1], state.record_columns[1].data(), state.records * kState * 4));
    for (int step = 9; step < 30; ++step)
      append(store, one(step, step - step % 4, stack, false, step % 4 == 3));
    std::byte mark[1];
    StateSpace to{1, stack + 1, mark, {nullptr, nullptr}, std::vector<std::byte*>(4, nullptr)};
    const Excerpt oldest = store.copy_steps(next, to);  // step 9 is long gone
    CHECK(oldest.first == 20 && oldest.steps == 1 && oldest.records == stack + 1 && mark[0] == std::byte{0});
    to.records = stack;
    CHECK(store.copy_steps(next, to).steps == 0);
    CHECK(store.copy_steps(99, to).steps == 0);
  }
}

void refuses_impossible_capacities() {
  CHECK_THROWS(Store(make_schema(), 0, 0), Error, "capacity is 0");
  CHECK_THROWS(Store(make_schema(), std::size_t{1} << 40, 0), Error, "at most 2^31 - 1");
}

}  // namespace

int main() {
  wraps_around_without_a_wrong_frame();
  keeps_the_capacity_with_the_shortest_stretches();
  stores_each_observation_once();
  continuity_is_checked();
  an_error_stores_nothing();
  refuses_observations_that_are_not_finite();
  sampling();
  relabels_live_steps_only();
  finds_the_starts_of_episodes();
  state_round_trip();
  copies_steps_once();
  refuses_impossible_capacities();
  return serl_fast::test::summary();
}
