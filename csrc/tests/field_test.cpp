#include "serl_fast/field.h"

#include "check.h"
#include "serl_fast/error.h"

using serl_fast::Dtype;
using serl_fast::Error;
using serl_fast::Field;
using serl_fast::Schema;

namespace {

Schema good() {
  return Schema{
      {{"observations/front", Dtype::kUint8, {4, 4, 3}, 3}, {"observations/state", Dtype::kFloat32, {5}, 1}},
      {{"actions", Dtype::kFloat32, {2}, 1},
       {"rewards", Dtype::kFloat32, {}, 1},
       {"terminated", Dtype::kBool, {}, 1},
       {"truncated", Dtype::kBool, {}, 1}}};
}

void sizes() {
  const Field front = good().observations[0];
  CHECK(front.frame_bytes() == 48);
  CHECK(front.row_bytes() == 144);
  CHECK((front.row_shape() == std::vector<std::size_t>{3, 4, 4, 3}));
  CHECK(good().observations[1].row_bytes() == 20);
  CHECK(good().steps[1].row_bytes() == 4);
  CHECK((good().steps[1].row_shape().empty()));
}

void columns() {
  const Schema schema = good();
  CHECK(schema.columns_in() == 8);
  CHECK(schema.max_stack() == 3);
  CHECK(schema.column_in(1).name == "observations/state");
  CHECK(schema.column_in(2).name == "next_observations/front");
  CHECK(schema.column_in(4).name == "actions");
  CHECK(schema.column_in(7).name == "truncated");
  CHECK(schema.step_index("truncated") == 3);
}

void refusals() {
  CHECK_THROWS(serl_fast::dtype_from_name("float64"), Error, "dtype 'float64' cannot be stored");
  CHECK_THROWS(Schema{}.validate(), Error, "at least one observation");
  good().validate();
  Schema schema = good();
  schema.steps[0].name = "rewards";
  CHECK_THROWS(schema.validate(), Error, "'rewards' is given twice");
  schema = good();
  schema.steps[0].stack = 2;
  CHECK_THROWS(schema.validate(), Error, "'actions' is no observation");
  schema = good();
  schema.observations[0].stack = 0;
  CHECK_THROWS(schema.validate(), Error, "stack of 0");
  schema = good();
  schema.observations[0].shape[1] = 0;
  schema.validate();  // a field of nothing is one
  schema = good();
  schema.steps[2].dtype = Dtype::kUint8;
  CHECK_THROWS(schema.validate(), Error, "'terminated' must hold one bool per step");
  schema = good();
  schema.steps.pop_back();
  CHECK_THROWS(schema.validate(), Error, "no field 'truncated'");
}

}  // namespace

int main() {
  sizes();
  columns();
  refusals();
  return serl_fast::test::summary();
}
