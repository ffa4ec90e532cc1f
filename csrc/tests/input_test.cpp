#include "serl_fast/input.h"

#include <cstdlib>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "rows.h"

using namespace serl_fast;
using namespace serl_fast::test;

namespace {

void refuses_what_is_not_finite() {
  const Schema schema = make_schema();
  Rows rows(schema, 3, schema.columns_in());
  for (std::size_t i = 0; i < 3; ++i) fill(rows, i, static_cast<int>(i), 0, 1);
  const auto columns = rows.const_pointers();
  const InputForm form(schema);
  const Input input(form, columns, 3);
  input.validate();
  rows.as<float>(kRewards)[2] = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS(input.validate(), Error, "field 'rewards' holds a non-finite value (nan) in row 2");
  rows.as<float>(kRewards)[2] = std::numeric_limits<float>::max();
  rows.as<float>(kNextVector)[kState] = -std::numeric_limits<float>::infinity();
  CHECK_THROWS(input.validate(), Error,
               "field 'next_observations/state' holds a non-finite value (-inf) in row 1");
}

void looks_at_observations_row_by_row() {
  const Schema schema = make_schema();
  Rows rows(schema, 3, schema.columns_in());
  for (std::size_t i = 0; i < 3; ++i) fill(rows, i, static_cast<int>(i), 0, 1);
  rows.as<float>(kVector)[2 * kState - 1] = std::numeric_limits<float>::infinity();
  const auto columns = rows.const_pointers();
  const InputForm form(schema);
  const Input input(form, columns, 3);
  input.validate();
  input.validate_observations(0);
  CHECK_THROWS(input.validate_observations(1), Error,
               "field 'observations/state' holds a non-finite value (inf) in row 1");
  input.validate_observations(2);
}

void finds_the_one_number_that_is_not_finite() {
  const float most = std::numeric_limits<float>::max(), least = std::numeric_limits<float>::denorm_min();
  for (std::size_t count = 0; count < 40; ++count) {
    const Field field{"numbers", Dtype::kFloat32, {count}, 1};
    std::vector<float> numbers(count + 1, std::numeric_limits<float>::quiet_NaN());  // the last lies beyond
    for (std::size_t i = 0; i < count; ++i) numbers[i] = i % 2 == 0 ? -most : least;
    const auto* bytes = reinterpret_cast<const std::byte*>(numbers.data());
    require_finite(field, bytes, 1);
    for (std::size_t i = 0; i < count; ++i) {
      for (const char* wrong : {"nan", "inf", "-inf"}) {
        const float kept = std::exchange(numbers[i], std::strtof(wrong, nullptr));
        CHECK_THROWS(require_finite(field, bytes, 1), Error, "(" + std::string(wrong) + ")");
        numbers[i] = kept;
      }
    }
  }
}

void refuses_stacks_that_do_not_move_by_one() {
  const Schema schema = make_schema(3);
  Rows rows = one(7, 0, 3);
  const auto columns = rows.const_pointers();
  const InputForm form(schema);
  const Input input(form, columns, 1);
  input.validate();
  rows.as<std::uint8_t>(kNextFront)[kPixels] = 1;
  CHECK_THROWS(input.validate(), Error, "field 'next_observations/front': its first 2 frames");
}

void refuses_another_number_of_columns() {
  const Schema schema = make_schema();
  CHECK_THROWS(Input(InputForm(schema), {}, 0), Error, "got 0 columns; the store takes 8");
}

}  // namespace

int main() {
  refuses_what_is_not_finite();
  looks_at_observations_row_by_row();
  finds_the_one_number_that_is_not_finite();
  refuses_stacks_that_do_not_move_by_one();
  refuses_another_number_of_columns();
  return serl_fast::test::summary();
}
