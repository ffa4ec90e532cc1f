#include "serl_fast/sampler.h"

#include <cmath>
#include <map>
#include <set>
#include <string>

#include "check.h"
#include "rows.h"

using namespace serl_fast;
using namespace serl_fast::test;

namespace {

std::size_t column(const Layout& layout, const std::string& name) {
  for (std::size_t c = 0; c < layout.columns.size(); ++c) {
    if (layout.columns[c].field.name == name) return c;
  }
  return layout.columns.size();
}

std::vector<float> floats(Rows& batch, const Layout& layout, const std::string& name) {
  const std::size_t c = column(layout, name);
  const float* values = batch.as<float>(c);
  return {values, values + batch.memory[c].size() / sizeof(float)};
}

Rows at(const Store& store, const Layout& layout, std::vector<std::int64_t> ages) {
  Rows batch(layout, ages.size());
  store.gather(ages, layout, batch.pointers());
  return batch;
}

using Floats = std::vector<float>;

// Steps 0 … 9 with reward = time; 3 terminates, 6 is truncated, 8 begins a stretch of its own.
void fill_ten(Store& store) {
  for (int time = 0; time < 10; ++time) {
    append(store, one(time, 0, 1, time == 3, time == 6), time == 8 ? Continues::kNo : Continues::kDecide);
  }
}

void n_step_returns_by_hand() {
  Store store(make_schema(), 10, 0);
  fill_ten(store);
  const Layout layout(store.schema(), View{.discount = 0.5, .n_step = 3});
  Rows batch = at(store, layout, {0, 2, 3, 5, 6, 7, 8, 9});
  CHECK((floats(batch, layout, "rewards") == Floats{0 + 0.5F + 0.5F, 2 + 1.5F, 3, 5 + 3, 6, 7, 8 + 4.5F, 9}));
  CHECK((floats(batch, layout, "discounts") == Floats{0.125F, 0, 0, 0.25F, 0.5F, 0.5F, 0.25F, 0.5F}));
  CHECK((floats(batch, layout, "masks") == Floats{1, 0, 0, 1, 1, 1, 1, 1}));
  const Floats next = floats(batch, layout, "next_observations/state");
  const int reached[] = {3, 4, 4, 7, 7, 8, 10, 10};
  for (std::size_t row = 0; row < 8; ++row) CHECK(next[row * kState] == static_cast<float>(reached[row]));
  const auto* truncated = batch.as<std::uint8_t>(kTruncated);
  CHECK(truncated[3] == 1 && truncated[4] == 1 && truncated[0] == 0 && truncated[1] == 0);
}

// Rewards 1, 2, 3 and γ = 0.99: 1, 1 + 0.99 · 2 = 2.98, 2.98 + 0.9801 · 3 = 5.9203.
void the_returns_of_a_sequence_by_hand() {
  Store store(make_schema(), 10, 0);
  for (int time = 1; time < 4; ++time) append(store, one(time, 0));
  const Layout layout(store.schema(), View{.discount = 0.99, .length = 3});
  Rows batch = at(store, layout, {0});
  const Floats rewards = floats(batch, layout, "rewards");
  CHECK(rewards[0] == 1.0F && rewards[1] == 2.98F && rewards[2] == 5.9203F);
  CHECK((floats(batch, layout, "valid") == Floats{1, 1, 1}));
  CHECK((floats(batch, layout, "terminals") == Floats{0, 0, 0}));
  const auto* next = batch.as<std::int64_t>(column(layout, "next_actions"));
  CHECK(next[0] == 2 && next[2] == 3 && next[4] == 3);  // the newest step has none after it
  const std::int64_t outside = 1;
  CHECK_THROWS(at(store, layout, {outside}), std::out_of_range, "outside the 1 starts of sequences");
}

void sequences_over_an_end_by_hand() {
  Store store(make_schema(), 10, 0);
  fill_ten(store);
  const Layout next(store.schema(), View{.discount = 0.5, .length = 4});
  Rows batch = at(store, next, {2});  // 2, 3 (terminated), 4, 5
  CHECK((floats(batch, next, "rewards") == Floats{2, 3.5F, 4.5F, 5.125F}));
  CHECK((floats(batch, next, "masks") == Floats{1, 0, 0, 0}));
  CHECK((floats(batch, next, "terminals") == Floats{0, 1, 1, 1}));
  CHECK((floats(batch, next, "valid") == Floats{1, 1, 0, 0}));
  CHECK((floats(batch, next, "discounts") == Floats{0.5F, 0, 0, 0}));
  CHECK(floats(batch, next, "next_observations/state")[3 * kState] == 6);
  const Layout last(store.schema(), View{.discount = 0.5, .length = 4, .pad = Pad::kLast});
  batch = at(store, last, {5, 9});  // 5, 6 (truncated), 6, 6; 9, 9, 9, 9
  CHECK((floats(batch, last, "rewards") == Floats{5, 8, 8, 8, 9, 9, 9, 9}));
  CHECK((floats(batch, last, "discounts") == Floats{0.5F, 0.25F, 0.25F, 0.25F, 0.5F, 0.5F, 0.5F, 0.5F}));
  CHECK((floats(batch, last, "valid") == Floats{1, 1, 0, 0, 1, 0, 0, 0}));
  CHECK(floats(batch, last, "full_observations/state")[3 * kState] == 6);
  CHECK(floats(batch, last, "observations/state")[kState] == 9);
}

std::vector<std::int64_t> drawn(Sampler& sampler, std::size_t rows) {
  Rows batch(sampler.layout(), rows);
  sampler.sample(rows, batch.pointers());
  const auto* ids = batch.as<std::int64_t>(kIds);
  return {ids, ids + rows};
}

void an_epoch_holds_every_step_once() {
  Store store(make_schema(), 10, 3);
  fill_ten(store);
  Sampler sampler(store, View{}, Order::kEpoch, 0.4);
  std::set<std::int64_t> seen;
  Rows batch(sampler.layout(), 4);
  std::vector<std::size_t> sizes;
  while (true) {
    sizes.push_back(sampler.sample_epoch(4, batch.pointers()));
    if (sizes.back() == 0) break;
    for (std::size_t i = 0; i < sizes.back(); ++i) seen.insert(batch.as<std::int64_t>(kIds)[i]);
    CHECK(batch.as<float>(kWeights)[0] == 1.0F);
  }
  CHECK((sizes == std::vector<std::size_t>{4, 4, 2, 0}));
  CHECK(seen.size() == 10 && *seen.begin() == 0 && *seen.rbegin() == 9);
  // sample() runs on into the next epoch: of 30 rows every step has 3.
  std::map<std::int64_t, int> counts;
  for (const std::int64_t id : drawn(sampler, 30)) ++counts[id];
  CHECK(counts.size() == 10);
  for (const auto& [id, count] : counts) CHECK(count == 3);
}

void an_epoch_passes_over_what_is_given_up() {
  Store store(make_schema(), 10, 3);
  fill_ten(store);
  Sampler sampler(store, View{}, Order::kEpoch, 0.4);
  Rows batch(sampler.layout(), 4);
  CHECK(sampler.sample_epoch(4, batch.pointers()) == 4);
  std::set<std::int64_t> seen(batch.as<std::int64_t>(kIds), batch.as<std::int64_t>(kIds) + 4);
  for (int time = 20; time < 25; ++time) append(store, one(time, 0));  // 0 … 4 are gone
  std::size_t expected = 0;
  for (std::int64_t id = 5; id < 10; ++id) expected += seen.count(id) == 0 ? 1 : 0;
  std::size_t rest = 0;
  while (const std::size_t count = sampler.sample_epoch(4, batch.pointers())) {
    rest += count;
    for (std::size_t i = 0; i < count; ++i) {
      const std::int64_t id = batch.as<std::int64_t>(kIds)[i];
      CHECK(id >= 5 && id < 10 && seen.insert(id).second);
    }
  }
  CHECK(rest == expected);
}

// A state with fewer steps, loaded within an epoch of sequences: the rest of it must still fit.
void a_load_ends_an_epoch_early() {
  Store store(make_schema(), 10, 3), shorter(make_schema(), 10, 3);
  fill_ten(store);
  for (int time = 0; time < 6; ++time) append(shorter, one(time, 0));
  Sampler sampler(store, View{.length = 4}, Order::kEpoch, 0.4);
  Rows batch(sampler.layout(), 1);
  CHECK(sampler.sample_epoch(1, batch.pointers()) == 1);
  const State state = shorter.state();
  store.load(state.view());
  const std::size_t ids = column(sampler.layout(), "ids");
  while (sampler.sample_epoch(1, batch.pointers()) == 1) CHECK(batch.as<std::int64_t>(ids)[0] <= 2);
}

void draws_by_priority() {
  Store store(make_schema(), 10, 11);
  CHECK_THROWS(Sampler(store, View{}, Order::kPrioritized, 0.4), Error, "call prioritize first");
  fill_ten(store);
  store.prioritize({.alpha = 1.0, .epsilon = 1e-6});
  CHECK_THROWS(store.prioritize({}), Error, "already");
  Sampler sampler(store, View{}, Order::kPrioritized, 1.0);
  CHECK_THROWS(sampler.set_beta(1.5), Error, "beta is 1.5");
  const std::vector<std::int64_t> ids = {0, 1, 2, 3, 4, 5, 6, 7, 77, -1};
  const Floats errors(ids.size(), 0.0F);
  CHECK(store.update_priorities(ids, errors) == 8);  // 8 and 9 keep 1
  std::map<std::int64_t, int> counts;
  for (const std::int64_t id : drawn(sampler, 1000)) ++counts[id];
  CHECK(counts.size() == 2 && std::abs(counts[8] - 500) <= 1);
  append(store, one(10, 0));  // takes the place of 0
  counts.clear();
  for (const std::int64_t id : drawn(sampler, 900)) ++counts[id];
  CHECK(counts.size() == 3 && std::abs(counts[10] - 300) <= 1);
  const Floats wrong = {1.0F, -1.0F};
  CHECK_THROWS(store.update_priorities(std::vector<std::int64_t>{9, 0}, wrong), Error, "priority 1 is");
}

// What a load replaces takes its priorities with it.
void a_load_forgets_priorities() {
  Store store(make_schema(), 10, 11), shorter(make_schema(), 10, 3);
  fill_ten(store);
  for (int time = 0; time < 2; ++time) append(shorter, one(time, 0));
  store.prioritize({.alpha = 1.0, .epsilon = 1e-6});
  store.load(shorter.state().view());
  Sampler sampler(store, View{}, Order::kPrioritized, 1.0);
  std::map<std::int64_t, int> counts;
  for (const std::int64_t id : drawn(sampler, 1000)) ++counts[id];
  CHECK(counts.size() == 2 && std::abs(counts[0] - 500) <= 1);
}

void a_column_that_is_not_wanted_is_left_out() {
  Store store(make_schema(), 10, 0);
  fill_ten(store);
  for (const View& view : {View{}, View{.n_step = 3}, View{.length = 3}}) {
    Sampler sampler(store, view, Order::kUniform, 0.4);
    Rows whole(sampler.layout(), 16);
    sampler.sample(16, whole.pointers());
    for (std::size_t c = 0; c < whole.memory.size(); ++c) {
      Rows part(sampler.layout(), 16);
      std::vector<std::byte*> only(whole.memory.size(), nullptr);
      only[c] = part.memory[c].data();
      store.set_draws(store.draws() - 1);
      sampler.sample(16, only);
      CHECK(part.memory[c] == whole.memory[c]);
    }
  }
}

void too_few_steps_for_a_sequence() {
  Store store(make_schema(), 10, 0);
  append(store, one(0, 0));
  Sampler sampler(store, View{.length = 2}, Order::kUniform, 0.4);
  Rows batch(sampler.layout(), 1);
  CHECK_THROWS(sampler.sample(1, batch.pointers()), Error, "a sequence needs 2");
  CHECK(store.draws() == 0);
  Sampler last(store, View{.length = 2, .pad = Pad::kLast}, Order::kUniform, 0.4);
  last.sample(1, batch.pointers());
  CHECK_THROWS(Sampler(store, View{.n_step = 2, .length = 2}, Order::kUniform, 0.4), Error, "n_step is 2");
  CHECK_THROWS(Sampler(store, View{.n_step = 0}, Order::kUniform, 0.4), Error, "n_step is 0");
}

}  // namespace

int main() {
  n_step_returns_by_hand();
  the_returns_of_a_sequence_by_hand();
  sequences_over_an_end_by_hand();
  an_epoch_holds_every_step_once();
  an_epoch_passes_over_what_is_given_up();
  a_load_ends_an_epoch_early();
  draws_by_priority();
  a_load_forgets_priorities();
  a_column_that_is_not_wanted_is_left_out();
  too_few_steps_for_a_sequence();
  return serl_fast::test::summary();
}
