#include "serl_fast/rng.h"

#include <algorithm>
#include <vector>

#include "check.h"

using serl_fast::philox4x32;
using serl_fast::uniform_indices;

namespace {

using Counter = std::array<std::uint32_t, 4>;

// The known answers that the authors publish with Random123.
void known_answers() {
  constexpr std::uint32_t kOnes = 0xffffffffU;
  CHECK((philox4x32({0, 0, 0, 0}, {0, 0}) == Counter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  CHECK((philox4x32({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}) ==
         Counter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  CHECK((philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
         Counter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

std::vector<std::uint64_t> indices(std::uint64_t seed, std::uint64_t draw, std::uint64_t bound,
                                   std::size_t n) {
  std::vector<std::uint64_t> out(n);
  uniform_indices(seed, draw, bound, out);
  return out;
}

void indices_are_uniform_and_below_the_bound() {
  std::vector<int> counts(7);
  for (const std::uint64_t index : indices(1, 2, 7, 70000)) {
    CHECK(index < 7);
    ++counts[index];
  }
  double chi_squared = 0;
  for (const int count : counts) chi_squared += (count - 10000.0) * (count - 10000.0) / 10000.0;
  CHECK(chi_squared < 22.5);  // 6 degrees of freedom, p = 0.001
}

// 2^64 numbers go into 3 * 2^62 indices: without rejection every third index would come twice as often.
void rejection_removes_the_bias() {
  const auto drawn = indices(3, 0, std::uint64_t{3} << 62, 30000);
  const auto thirds =
      std::count_if(drawn.begin(), drawn.end(), [](std::uint64_t index) { return index % 3 == 0; });
  CHECK(thirds > 9700);
  CHECK(thirds < 10300);
}

void seed_and_draw_decide() {
  CHECK(indices(1, 2, 1000, 16) == indices(1, 2, 1000, 16));
  CHECK(indices(1, 2, 1000, 16) != indices(1, 3, 1000, 16));
  CHECK(indices(1, 2, 1000, 16) != indices(2, 2, 1000, 16));
  CHECK(indices(1, std::uint64_t{1} << 32, 1000, 16) != indices(1, 0, 1000, 16));
  CHECK(indices(std::uint64_t{1} << 32, 0, 1000, 16) != indices(0, 0, 1000, 16));
  auto few = indices(1, 2, 1000, 16);  // a row does not depend on how many are drawn
  few.resize(4);
  CHECK(few == indices(1, 2, 1000, 4));
}

}  // namespace

int main() {
  known_answers();
  indices_are_uniform_and_below_the_bound();
  rejection_removes_the_bias();
  seed_and_draw_decide();
  return serl_fast::test::summary();
}
