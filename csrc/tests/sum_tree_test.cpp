#include "serl_fast/sum_tree.h"

#include <cmath>
#include <limits>
#include <utility>

#include "check.h"
#include "serl_fast/error.h"
#include "serl_fast/rng.h"

using serl_fast::Error;
using serl_fast::SumTree;

namespace {

std::vector<std::uint64_t> numbers(std::uint64_t draw, std::uint64_t bound, std::size_t n) {
  std::vector<std::uint64_t> out(n);
  serl_fast::uniform_indices(1, draw, bound, out);
  return out;
}

// The definition in the header, level by level with no tree in memory.
struct Plain {
  std::vector<std::vector<float>> levels;

  explicit Plain(std::vector<float> leaves) {
    levels.push_back(std::move(leaves));
    for (;;) {
      auto& below = levels.back();
      below.resize((below.size() + 15) / 16 * 16);
      if (below.size() == 16) break;
      std::vector<float> sums;
      for (std::size_t node = 0; node < below.size(); node += 16) {
        float sum = 0;
        for (std::size_t child = 0; child < 16; ++child) sum = sum + below[node + child];
        sums.push_back(sum);
      }
      levels.push_back(std::move(sums));
    }
  }

  double total() const {
    double sum = 0;
    for (const float child : levels.back()) sum = sum + static_cast<double>(child);
    return sum;
  }

  std::size_t find(double mass) const {
    if (!(mass > 0)) mass = 0;
    std::size_t at = 0;
    for (std::size_t number = levels.size(); number-- > 0;) {
      const float* node = levels[number].data() + at * 16;
      std::size_t last = 0;
      for (std::size_t child = 0; child < 16; ++child)
        if (node[child] != 0) last = child;
      std::size_t child = 0;
      for (; child < last && mass >= static_cast<double>(node[child]); ++child)
        mass -= static_cast<double>(node[child]);
      at = at * 16 + child;
    }
    return at;
  }
};

void small_tree_by_hand() {
  SumTree tree(5);
  CHECK(tree.leaves() == 5);
  CHECK(tree.total() == 0);
  CHECK(tree.find(0) == 0);
  tree.set(1, 2.0F);
  tree.set(3, 1.0F);
  CHECK(tree.value(1) == 2.0F);
  CHECK(tree.value(0) == 0.0F);
  CHECK(tree.total() == 3);
  CHECK(tree.find(0.0) == 1);
  CHECK(tree.find(std::nextafter(2.0, 0.0)) == 1);
  CHECK(tree.find(2.0) == 3);
  CHECK(tree.find(std::nextafter(3.0, 0.0)) == 3);
}

void mass_outside_the_total_finds_the_ends() {
  SumTree tree(1000);
  tree.set(17, 1.0F);
  tree.set(900, 1.0F);
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  for (const double mass : {-kInfinity, -1.0, -0.0, std::numeric_limits<double>::quiet_NaN()})
    CHECK(tree.find(mass) == 17);
  for (const double mass : {2.0, 3.0, 1e300, kInfinity}) CHECK(tree.find(mass) == 900);
}

void last_value_of_a_repeated_leaf_counts() {
  SumTree tree(300);
  tree.set(std::vector<std::uint32_t>{7, 290, 7}, std::vector<float>{5, 1, 2});
  CHECK(tree.value(7) == 2);
  CHECK(tree.total() == 3);
}

// Random sizes, batches and zeros: every leaf, the total and what is found are those of the definition.
void agrees_with_the_definition() {
  std::uint64_t draw = 0;
  for (const std::size_t size : {1U, 15U, 16U, 17U, 255U, 256U, 257U, 4096U, 4097U, 70000U}) {
    SumTree tree(size);
    std::vector<float> values(size);
    for (const std::size_t batch : {1U, 3U, 40U, 256U, 5000U}) {
      std::vector<std::uint32_t> leaves;
      std::vector<float> given;
      for (const auto leaf : numbers(++draw, size, batch)) leaves.push_back(static_cast<std::uint32_t>(leaf));
      for (const auto bits : numbers(++draw, 1U << 24, batch)) {
        const auto base = static_cast<float>(bits % 1000 + 1) / 7.0F;
        given.push_back(bits % 3 == 0 ? 0.0F : std::pow(base, static_cast<float>(bits % 9) - 4.0F));
      }
      tree.set(leaves, given);
      for (std::size_t i = 0; i < batch; ++i) values[leaves[i]] = given[i];
      const Plain plain(values);
      for (std::size_t leaf = 0; leaf < size; ++leaf) CHECK(tree.value(leaf) == values[leaf]);
      CHECK(tree.total() == plain.total());

      std::vector<double> masses = {0, plain.total(), plain.total() * 1.001};
      for (const auto bits : numbers(++draw, std::uint64_t{1} << 53, 500))
        masses.push_back(static_cast<double>(bits) * 0x1p-53 * plain.total());
      std::vector<std::uint32_t> found(masses.size());
      tree.find(masses, found);
      for (std::size_t i = 0; i < masses.size(); ++i) {
        CHECK(found[i] == plain.find(masses[i]));
        CHECK(found[i] == tree.find(masses[i]));
        CHECK(found[i] < size);
        CHECK(plain.total() == 0 || values[found[i]] > 0);
      }
    }
  }
}

// Small values vanish in the sums beside large ones, and the rounded sums exceed those of the leaves.
void zeros_are_never_found() {
  SumTree tree(4096);
  std::vector<std::uint32_t> leaves;
  std::vector<float> values;
  for (std::uint32_t leaf = 0; leaf < 4096; leaf += 3) {
    leaves.push_back(leaf);
    values.push_back(leaf % 2 == 0 ? 16777216.0F : leaf % 5 == 0 ? 1e-30F : 3.0F);
  }
  tree.set(leaves, values);
  const double total = tree.total();
  for (int i = 0; i <= 20000; ++i) {
    const double mass = total * i / 20000.0;
    CHECK(tree.value(tree.find(mass)) > 0);
    CHECK(tree.value(tree.find(std::nextafter(mass, 0.0))) > 0);
  }
}

// A leaf is found as often as its share of the total says.
void shares_are_those_of_the_values() {
  SumTree tree(1000);
  std::vector<int> counts(1000);
  for (std::size_t leaf = 0; leaf < 1000; ++leaf) tree.set(leaf, static_cast<float>(leaf % 10));
  constexpr int kDraws = 450000;  // 100 for each unit of value
  for (int i = 0; i < kDraws; ++i) ++counts[tree.find((i + 0.5) / kDraws * tree.total())];
  for (std::size_t leaf = 0; leaf < 1000; ++leaf)
    CHECK(std::abs(counts[leaf] - 100 * static_cast<int>(leaf % 10)) <= 1);
}

// The sums depend on the values alone, not on the order or the batches in which they came.
void nothing_drifts() {
  SumTree once(5000);
  SumTree often(5000);
  for (std::uint64_t round = 0; round < 20; ++round)
    for (const auto bits : numbers(100 + round, 1U << 24, 1000))
      often.set(bits % 5000, static_cast<float>(bits) * 1e-3F);
  std::vector<std::uint32_t> leaves;
  std::vector<float> values;
  for (std::uint32_t leaf = 0; leaf < 5000; ++leaf) {
    leaves.push_back(leaf);
    values.push_back(1.0F / static_cast<float>(leaf + 1));
  }
  once.set(leaves, values);
  for (std::size_t leaf = 5000; leaf-- > 0;) often.set(leaf, values[leaf]);
  CHECK(once.total() == often.total());
  for (int i = 0; i < 5000; ++i) {
    const double mass = once.total() * i / 5000.0;
    CHECK(once.find(mass) == often.find(mass));
  }
  for (std::size_t leaf = 0; leaf < 5000; ++leaf) often.set(leaf, 0.0F);
  CHECK(often.total() == 0);
}

void largest_values_do_not_overflow() {
  SumTree tree(100);
  for (std::size_t leaf = 0; leaf < 100; ++leaf) tree.set(leaf, SumTree::kMaxValue);
  CHECK(std::isfinite(tree.total()));
  CHECK(tree.find(tree.total() * 0.505) == 50);
}

void moves() {
  SumTree tree(1000);
  tree.set(500, 1.0F);
  SumTree other = std::move(tree);
  other.set(3, 1.0F);
  CHECK(other.find(1.0) == 500);
}

void refuses_and_stays_as_it_was() {
  CHECK_THROWS(SumTree(0), Error, "0 leaves");
  CHECK_THROWS(SumTree((std::size_t{1} << 32) + 1), Error, "1 to 4294967296");
  SumTree tree(20);
  CHECK_THROWS(tree.set(20, 1.0F), Error, "leaf 20 does not exist");
  CHECK_THROWS(tree.value(20), Error, "has 20");
  for (const float value :
       {-1.0F, 2e28F, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    CHECK_THROWS(tree.set(0, value), Error, "0 to 1e28");
  }
  const std::vector<std::uint32_t> leaves = {1, 2};
  CHECK_THROWS(tree.set(leaves, std::vector<float>{1, -1}), Error, "leaf 2");
  CHECK_THROWS(tree.set(leaves, std::vector<float>{1}), Error, "2 leaves and 1 values");
  CHECK_THROWS(tree.set(std::vector<std::uint32_t>{1, 20}, std::vector<float>{1, 1}), Error, "leaf 20");
  CHECK(tree.total() == 0);
  CHECK(tree.value(1) == 0);
  std::vector<std::uint32_t> found(1);
  CHECK_THROWS(tree.find(std::vector<double>{0, 0}, found), Error, "1 leaves and 2 masses");
}

}  // namespace

int main() {
  small_tree_by_hand();
  mass_outside_the_total_finds_the_ends();
  last_value_of_a_repeated_leaf_counts();
  agrees_with_the_definition();
  zeros_are_never_found();
  shares_are_those_of_the_values();
  nothing_drifts();
  largest_values_do_not_overflow();
  moves();
  refuses_and_stays_as_it_was();
  return serl_fast::test::summary();
}
