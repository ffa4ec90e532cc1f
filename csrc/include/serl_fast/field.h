// What a store holds: the name, number type and shape of every field.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace serl_fast {

enum class Dtype : std::uint8_t { kUint8, kInt32, kInt64, kFloat32, kBool };

std::size_t size_of(Dtype dtype);
std::string_view name_of(Dtype dtype);
// Throws Error for a name that is none of uint8, int32, int64, float32 and bool.
Dtype dtype_from_name(std::string_view name);

struct Field {
  std::string name;  // "observations/front", "rewards"
  Dtype dtype = Dtype::kFloat32;
  std::vector<std::size_t> shape;  // of ONE frame: without the batch axis and without the stack axis
  std::size_t stack = 1;           // frames that a caller sees at once; 1: the field is no stack

  std::size_t elements() const;                                    // of one frame
  std::size_t frame_bytes() const;                                 // what one record holds
  std::size_t row_bytes() const { return stack * frame_bytes(); }  // what a caller gives and gets per row
  std::vector<std::size_t> row_shape() const;  // shape with the stack axis in front, if any
};

// The fields of the two tables. Every list of incoming columns has this order: observations, next
// observations, steps. For outgoing ones see view.h.
struct Schema {
  std::vector<Field> observations;  // one record per instant
  std::vector<Field> steps;         // one row per transition: actions, rewards, terminated, truncated, …

  // Throws Error: no observation, a name used twice, a stacked step field, or one of the fields that every
  // step needs (rewards float32, terminated and truncated bool, each one number per row) missing.
  void validate() const;

  std::size_t columns_in() const { return 2 * observations.size() + steps.size(); }
  std::size_t max_stack() const;
  std::size_t step_index(std::string_view name) const;  // throws Error where there is none
  Field column_in(std::size_t index) const;
};

}  // namespace serl_fast
