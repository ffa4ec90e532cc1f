#include "serl_fast/mixture.h"

#include <cstdint>
#include <limits>
#include <vector>

#include "check.h"
#include "numbered.h"

using namespace serl_fast;
using namespace serl_fast::test;

namespace {

using Counts = std::vector<std::size_t>;
using Shares = std::vector<double>;

void counts_by_largest_remainder() {
  CHECK((largest_remainders(Shares{0.5, 0.5}, 256) == Counts{128, 128}));
  CHECK((largest_remainders(Shares{0.5, 0.5}, 255) == Counts{128, 127}));
  CHECK((largest_remainders(Shares{1.0 / 3, 1.0 / 3, 1.0 / 3}, 256) == Counts{86, 85, 85}));
  CHECK((largest_remainders(Shares{0.1, 0.2, 0.7}, 10) == Counts{1, 2, 7}));
  CHECK((largest_remainders(Shares{0.25, 0.25, 0.5}, 6) == Counts{2, 1, 3}));
  CHECK((largest_remainders(Shares{3, 1}, 8) == Counts{6, 2}));
  CHECK((largest_remainders(Shares{1, 0}, 8) == Counts{8, 0}));
  CHECK((largest_remainders(Shares{0, 5e-324}, 3) == Counts{0, 3}));
  CHECK((largest_remainders(Shares{1e308, 1e308, 1e308, 1e308}, 6) == Counts{2, 2, 1, 1}));
  const std::size_t huge = std::numeric_limits<std::size_t>::max();
  CHECK((largest_remainders(Shares{1, 1}, huge) == Counts{huge / 2 + 1, huge / 2}));
  Counts each(40, 2);
  for (int i = 0; i < 20; ++i) each[static_cast<std::size_t>(i)] = 3;
  CHECK(largest_remainders(Shares(40, 0.1), 100) == each);
}

void impossible_mixtures() {
  const auto store = numbered_store(0, 1);
  Sampler one(*store, View{}, Order::kUniform, 0.4);
  Sampler sequences(*store, View{0.9, 1, 2, Pad::kNext}, Order::kUniform, 0.4);
  CHECK_THROWS(Mixture({}, {}, 1), Error, "no sources");
  CHECK_THROWS(Mixture({&one}, Shares{0.5, 0.5}, 1), Error, "1 stores have 2 shares");
  CHECK_THROWS(Mixture({&one}, Shares{-1.0}, 1), Error, "not negative");
  CHECK_THROWS(Mixture({&one}, Shares{0.0}, 1), Error, "not all 0");
  CHECK_THROWS(Mixture({&one}, Shares{std::numeric_limits<double>::infinity()}, 1), Error, "finite");
  CHECK_THROWS(Mixture({&one}, Shares{1.0}, 0), Error, "min_size is 0");
  CHECK_THROWS(Mixture({&one, &sequences}, Shares{1, 1}, 1), Error, "of source 1 differs from column");
}

void rows_stand_in_the_order_of_the_sources() {
  const auto a = numbered_store(0, 10), b = numbered_store(100, 10);
  Sampler from_a(*a, View{}, Order::kUniform, 0.4), from_b(*b, View{}, Order::kUniform, 0.4);
  Mixture mixture({&from_a, &from_b}, Shares{0.25, 0.75}, 1);
  NumberedBatch batch(mixture.layout(), 8);
  mixture.sample(8, batch.pointers, batch.sources.data());
  CHECK((batch.sources == std::vector<std::int32_t>{0, 0, 1, 1, 1, 1, 1, 1}));
  const std::vector<float> rewards = batch.rewards();
  for (std::size_t i = 0; i < 8; ++i) CHECK((rewards[i] >= 100) == (i >= 2));
  CHECK(a->draws() == 1 && b->draws() == 1);

  b->set_draws(0);
  NumberedBatch part(from_b.layout(), 6);
  from_b.sample(6, part.pointers);
  CHECK(part.rewards() == std::vector<float>(rewards.begin() + 2, rewards.end()));

  mixture.set_shares(Shares{1, 0});
  mixture.sample(8, batch.pointers, nullptr);  // also without the column of sources
  for (const float reward : batch.rewards()) CHECK(reward < 100);
  CHECK(b->draws() == 1);  // no part of that batch
}

void short_sources_give_their_share_away() {
  const auto empty = numbered_store(0, 0), a = numbered_store(100, 3), b = numbered_store(200, 10);
  const View sequences{0.9, 1, 3, Pad::kNext};
  std::vector<std::unique_ptr<Sampler>> samplers;
  for (Store* store : {empty.get(), a.get(), b.get()}) {
    samplers.push_back(std::make_unique<Sampler>(*store, sequences, Order::kUniform, 0.4));
  }
  const std::vector<Sampler*> sources = {samplers[0].get(), samplers[1].get(), samplers[2].get()};
  Mixture mixture(sources, Shares{0.5, 0.375, 0.125}, 1);
  CHECK((mixture.counts(8) == Counts{0, 6, 2}));
  Mixture two(sources, Shares{0.5, 0.375, 0.125}, 2);  // sequences: `a` holds one of them
  CHECK((two.counts(8) == Counts{0, 0, 8}));
  CHECK((two.counts(8, Shares{0, 0, 1}) == Counts{0, 0, 8}));
  CHECK(!two.ready(Shares{1, 1, 0}));
  CHECK_THROWS(two.counts(8, Shares{1, 1, 0}), Error,
               "hold 0, 1, 8 sequences; one with a share needs at least 2");
  CHECK_THROWS(two.counts(0), Error, "batch size is 0");
}

// Two plans, filled the other way round.
void plans_decide_what_is_drawn() {
  const auto a = numbered_store(0, 50), twin = numbered_store(0, 50);
  Sampler from_a(*a, View{}, Order::kUniform, 0.4), from_twin(*twin, View{}, Order::kUniform, 0.4);
  Mixture mixture({&from_a}, Shares{1}, 1), direct({&from_twin}, Shares{1}, 1);
  Mixture::Plan first, second;
  mixture.plan(16, first);
  mixture.plan(16, second);
  CHECK(first.appended == std::vector<std::uint64_t>{50});
  NumberedBatch one(mixture.layout(), 16), two(mixture.layout(), 16), expected(mixture.layout(), 16);
  mixture.fill(second, two.pointers, nullptr);
  mixture.fill(first, one.pointers, nullptr);
  direct.sample(16, expected.pointers, nullptr);
  CHECK(one.rewards() == expected.rewards());
  direct.sample(16, expected.pointers, nullptr);
  CHECK(two.rewards() == expected.rewards());
}

}  // namespace

int main() {
  counts_by_largest_remainder();
  impossible_mixtures();
  rows_stand_in_the_order_of_the_sources();
  short_sources_give_their_share_away();
  plans_decide_what_is_drawn();
  return serl_fast::test::summary();
}
