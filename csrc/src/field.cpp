#include "serl_fast/field.h"

#include <algorithm>
#include <array>
#include <set>

#include "serl_fast/error.h"

namespace serl_fast {
namespace {

struct DtypeEntry {
  Dtype dtype;
  std::string_view name;
  std::size_t size;
};

constexpr std::array<DtypeEntry, 5> kDtypes = {{{Dtype::kUint8, "uint8", 1},
                                                {Dtype::kInt32, "int32", 4},
                                                {Dtype::kInt64, "int64", 8},
                                                {Dtype::kFloat32, "float32", 4},
                                                {Dtype::kBool, "bool", 1}}};

void require_scalar(const Schema& schema, std::string_view name, Dtype dtype) {
  const Field& field = schema.steps[schema.step_index(name)];
  if (field.dtype != dtype || !field.shape.empty()) {
    throw Error("field '" + field.name + "' must hold one " + std::string(name_of(dtype)) + " per step");
  }
}

}  // namespace

std::size_t size_of(Dtype dtype) { return kDtypes[static_cast<std::size_t>(dtype)].size; }

std::string_view name_of(Dtype dtype) { return kDtypes[static_cast<std::size_t>(dtype)].name; }

Dtype dtype_from_name(std::string_view name) {
  for (const DtypeEntry& entry : kDtypes) {
    if (entry.name == name) return entry.dtype;
  }
  throw Error("dtype '" + std::string(name) + "' cannot be stored; use uint8, int32, int64, float32 or bool");
}

std::size_t Field::elements() const {
  std::size_t product = 1;
  for (const std::size_t length : shape) product *= length;
  return product;
}

std::size_t Field::frame_bytes() const { return elements() * size_of(dtype); }

std::vector<std::size_t> Field::row_shape() const {
  std::vector<std::size_t> result = shape;
  if (stack > 1) result.insert(result.begin(), stack);
  return result;
}

void Schema::validate() const {
  if (observations.empty()) throw Error("a store needs at least one observation field");
  std::set<std::string> names;
  for (const std::vector<Field>* table : {&observations, &steps}) {
    for (const Field& field : *table) {
      if (!names.insert(field.name).second) throw Error("field '" + field.name + "' is given twice");
      if (field.stack == 0) throw Error("field '" + field.name + "' has a stack of 0 frames");
    }
  }
  for (const Field& field : steps) {
    if (field.stack != 1) throw Error("field '" + field.name + "' is no observation and cannot be a stack");
  }
  require_scalar(*this, "rewards", Dtype::kFloat32);
  require_scalar(*this, "terminated", Dtype::kBool);
  require_scalar(*this, "truncated", Dtype::kBool);
}

std::size_t Schema::max_stack() const {
  std::size_t result = 1;
  for (const Field& field : observations) result = std::max(result, field.stack);
  return result;
}

std::size_t Schema::step_index(std::string_view name) const {
  for (std::size_t i = 0; i < steps.size(); ++i) {
    if (steps[i].name == name) return i;
  }
  throw Error("the schema has no field '" + std::string(name) + "'");
}

Field Schema::column_in(std::size_t index) const {
  const std::size_t count = observations.size();
  if (index < count) return observations[index];
  if (index >= 2 * count) return steps.at(index - 2 * count);
  Field field = observations[index - count];
  field.name = "next_" + field.name;
  return field;
}

}  // namespace serl_fast
