#include "serl_fast/permutation.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <vector>

#include "check.h"
#include "serl_fast/error.h"

using serl_fast::Error;
using serl_fast::Permutation;
using serl_fast::permuted;

namespace {

std::vector<std::uint64_t> images(std::uint64_t seed, std::uint64_t epoch, std::uint64_t bound) {
  const Permutation permutation(seed, epoch, bound);
  std::vector<std::uint64_t> out(bound);
  for (std::uint64_t index = 0; index < bound; ++index) out[index] = permutation(index);
  return out;
}

bool is_permutation(std::vector<std::uint64_t> images) {
  std::vector<bool> seen(images.size());
  for (const std::uint64_t image : images) {
    if (image >= images.size() || seen[image]) return false;
    seen[image] = true;
  }
  return true;
}

// Chi-squared in standard deviations above its mean; 5 is exceeded with p < 1e-5 or so.
double excess(const std::vector<int>& counts, double expected) {
  double chi_squared = 0;
  for (const int count : counts) chi_squared += (count - expected) * (count - expected) / expected;
  const auto freedom = static_cast<double>(counts.size()) - 1;
  return (chi_squared - freedom) / std::sqrt(2 * freedom);
}

void every_index_comes_once() {
  for (std::uint64_t bound = 1; bound <= 300; ++bound)
    for (std::uint64_t epoch = 0; epoch < 5; ++epoch) CHECK(is_permutation(images(bound, epoch, bound)));
  for (const std::uint64_t bound : {1023U, 1024U, 1025U, 65536U, 65537U, 1000003U})
    CHECK(is_permutation(images(1, 2, bound)));
}

void whole_range_of_32_bits() {
  const std::uint64_t bound = std::uint64_t{1} << 32;
  const Permutation permutation(1, 2, bound);
  std::vector<std::uint64_t> some;
  for (std::uint64_t i = 0; i < 20000; ++i) some.push_back(permutation(bound - 1 - i));
  CHECK(*std::max_element(some.begin(), some.end()) < bound);
  std::sort(some.begin(), some.end());
  CHECK(std::adjacent_find(some.begin(), some.end()) == some.end());
}

void seed_and_epoch_decide() {
  CHECK(images(1, 2, 100) == images(1, 2, 100));
  CHECK(images(1, 2, 100) != images(1, 3, 100));
  CHECK(images(1, 2, 100) != images(2, 2, 100));
  CHECK(images(1, std::uint64_t{1} << 32, 100) != images(1, 0, 100));
  CHECK(images(std::uint64_t{1} << 32, 0, 100) != images(0, 0, 100));
  CHECK(permuted(1, 2, 100, 3) == images(1, 2, 100)[3]);
}

// Known answers, so that what a seed means does not change unnoticed.
void known_answers() {
  CHECK((images(1, 2, 5) == std::vector<std::uint64_t>{3, 2, 4, 0, 1}));
  CHECK((images(7, 0, 10) == std::vector<std::uint64_t>{2, 0, 8, 6, 4, 1, 5, 7, 9, 3}));
  CHECK(permuted(0x123456789abcdefU, 0xfedcba987654321U, 1000000, 999999) == 40326U);
  CHECK(permuted(3, 4, std::uint64_t{1} << 32, 5) == 3719768282U);
}

// Over the epochs every index stands at every place equally often, and so do neighbours at pairs of places.
void places_are_uniform() {
  for (const std::uint64_t bound : {2U, 3U, 4U, 5U, 7U, 8U, 13U, 16U, 17U, 31U, 33U, 63U, 65U, 100U}) {
    const std::uint64_t epochs = 200 * bound;
    std::vector<int> places(bound * bound);
    std::vector<int> pairs(bound * bound);
    for (std::uint64_t epoch = 0; epoch < epochs; ++epoch) {
      const Permutation permutation(11, epoch, bound);
      std::uint64_t before = permutation(0);
      ++places[before];
      for (std::uint64_t index = 1; index < bound; ++index) {
        const std::uint64_t image = permutation(index);
        ++places[index * bound + image];
        if (index == bound / 2) ++pairs[before * bound + image];
        before = image;
      }
    }
    const auto size = static_cast<double>(bound);
    CHECK(excess(places, static_cast<double>(epochs) / size) < 5);
    std::vector<int> possible;  // two indices never share a place
    for (std::uint64_t pair = 0; pair < pairs.size(); ++pair) {
      if (pair / bound == pair % bound)
        CHECK(pairs[pair] == 0);
      else
        possible.push_back(pairs[pair]);
    }
    CHECK(excess(possible, static_cast<double>(epochs) / (size * (size - 1))) < 5);
  }
}

void orders_of_few_are_equally_likely() {
  for (const std::uint64_t bound : {3U, 4U, 5U}) {
    const std::size_t orders = bound == 3 ? 6 : bound == 4 ? 24 : 120;
    std::map<std::vector<std::uint64_t>, int> counts;
    for (std::uint64_t epoch = 0; epoch < 1000 * orders; ++epoch) ++counts[images(5, epoch, bound)];
    CHECK(counts.size() == orders);
    std::vector<int> flat;
    for (const auto& [order, count] : counts) flat.push_back(count);
    CHECK(excess(flat, 1000) < 5);
  }
}

// A large bound in one epoch: the first hundredth of the indices is spread over the whole range.
void few_of_many_are_spread() {
  for (const std::uint64_t bound : {100000U, 1000000U, 16777216U}) {
    const Permutation permutation(2, 9, bound);
    std::vector<int> cells(100);
    for (std::uint64_t index = 0; index < bound / 100; ++index) ++cells[permutation(index) * 100 / bound];
    CHECK(excess(cells, static_cast<double>(bound) / 10000) < 5);
  }
}

void refuses() {
  CHECK_THROWS(permuted(1, 2, 0, 0), Error, "1 to 4294967296");
  CHECK_THROWS(Permutation(1, 2, (std::uint64_t{1} << 32) + 1), Error, "1 to 4294967296");
  CHECK_THROWS(permuted(1, 2, 10, 10), Error, "indices below 10");
}

}  // namespace

int main() {
  every_index_comes_once();
  whole_range_of_32_bits();
  seed_and_epoch_decide();
  known_answers();
  places_are_uniform();
  orders_of_few_are_equally_likely();
  few_of_many_are_spread();
  refuses();
  return serl_fast::test::summary();
}
