#include "serl_fast/priorities.h"

#include <cmath>
#include <limits>
#include <vector>

#include "check.h"
#include "serl_fast/error.h"

using namespace serl_fast;

namespace {

bool near(double one, double other) { return std::abs(one - other) <= 1e-6 * std::abs(other); }

void a_new_row_gets_the_largest_priority_so_far() {
  Priorities priorities({.alpha = 0.5, .epsilon = 1e-6}, 8);
  priorities.insert(0);
  CHECK(priorities.value(0) == 1.0F);
  const std::vector<std::uint32_t> rows = {0};
  priorities.update(rows, std::vector<float>{9.0F});
  CHECK(near(priorities.value(0), 3.0));  // sqrt(9)
  priorities.insert(1);
  CHECK(near(priorities.value(1), 3.0));
  priorities.update(rows, std::vector<float>{0.0F});  // the largest stays what it was
  CHECK(near(priorities.value(0), 1e-3));
  priorities.insert(2);
  CHECK(near(priorities.value(2), 3.0));
  priorities.remove(2);
  CHECK(priorities.value(2) == 0.0F);
}

void refuses_what_is_no_priority() {
  Priorities priorities({}, 4);
  priorities.require_errors(std::vector<float>{0.0F, 1e20F});
  for (const float wrong :
       {-1.0F, std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    CHECK_THROWS(priorities.require_errors(std::vector<float>{0.0F, wrong}), Error, "priority 1 is");
  }
  CHECK_THROWS(Priorities({.alpha = 1.5}, 4), Error, "alpha is 1.5");
  CHECK_THROWS(Priorities({.alpha = -0.5}, 4), Error, "alpha is -0.5");
  CHECK_THROWS(Priorities({.alpha = 0.5, .epsilon = 0.0}, 4), Error, "epsilon is 0");
}

// Priorities 1, 2, 5 of 8 in all: of 800 rows drawn from equal parts, 100, 200 and 500, the borders aside.
void draws_in_proportion() {
  Priorities priorities({.alpha = 1.0, .epsilon = 1e-9}, 100);
  priorities.update(std::vector<std::uint32_t>{3, 50, 99}, std::vector<float>{1.0F, 2.0F, 5.0F});
  std::vector<std::uint32_t> rows(800);
  std::vector<double> masses(800);
  priorities.draw(7, 0, rows, masses);
  std::vector<int> counts(100);
  for (const std::uint32_t row : rows) ++counts[row];
  CHECK(std::abs(counts[3] - 100) <= 1 && std::abs(counts[50] - 200) <= 2 && std::abs(counts[99] - 500) <= 1);
  CHECK(counts[3] + counts[50] + counts[99] == 800);
}

// N = 4, P = 1/8, 2/8, 5/8: (N P)^-0.5 = sqrt(2), 1, sqrt(0.4), over the largest of the batch.
void weights_by_hand() {
  Priorities priorities({.alpha = 1.0, .epsilon = 1e-9}, 4);
  priorities.update(std::vector<std::uint32_t>{0, 1, 2}, std::vector<float>{1.0F, 2.0F, 5.0F});
  std::vector<float> weights(3);
  priorities.weights(std::vector<std::uint32_t>{0, 1, 2}, 4, 0.5, weights.data());
  CHECK(near(weights[0], 1.0) && near(weights[1], std::sqrt(0.5)) && near(weights[2], std::sqrt(0.2)));
  priorities.weights(std::vector<std::uint32_t>{1, 2, 2}, 4, 1.0, weights.data());
  CHECK(near(weights[0], 1.0) && near(weights[1], 0.4) && near(weights[2], 0.4));
  priorities.weights(std::vector<std::uint32_t>{1, 2, 2}, 4, 0.0, weights.data());
  CHECK(weights[0] == 1.0F && weights[1] == 1.0F);
}

}  // namespace

int main() {
  a_new_row_gets_the_largest_priority_so_far();
  refuses_what_is_no_priority();
  draws_in_proportion();
  weights_by_hand();
  return serl_fast::test::summary();
}
