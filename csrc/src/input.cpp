#include "serl_fast/input.h"

#include <cstdint>
#include <cstring>
#include <string>

#include "serl_fast/error.h"

namespace serl_fast {
namespace {

constexpr std::uint32_t kExponent = 0x7f800000U;  // all ones in an infinity and in every NaN
constexpr std::uint32_t kMantissa = 0x007fffffU;
constexpr std::uint32_t kSign = 0x80000000U;

std::uint32_t load_bits(const std::byte* data, std::size_t index) {
  std::uint32_t bits;
  std::memcpy(&bits, data + index * sizeof(bits), sizeof(bits));
  return bits;
}

const char* name_of_non_finite(std::uint32_t bits) {
  if ((bits & kMantissa) != 0) return "nan";
  return (bits & kSign) != 0 ? "-inf" : "inf";
}

// "" for a single row: there is nothing to tell apart.
std::string in_row(std::size_t row, std::size_t rows) {
  return rows > 1 ? " in row " + std::to_string(row) : std::string();
}

}  // namespace

void require_finite(const Field& field, std::string_view prefix, const std::byte* data, std::size_t rows) {
  if (field.dtype != Dtype::kFloat32) return;
  const std::size_t per_row = field.row_bytes() / sizeof(float);
  const std::size_t count = rows * per_row;
  bool found = false;
  for (std::size_t i = 0; i < count; ++i) found |= (load_bits(data, i) & kExponent) == kExponent;
  if (!found) return;
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t bits = load_bits(data, i);
    if ((bits & kExponent) != kExponent) continue;
    throw Error("field '" + std::string(prefix) + field.name + "' holds a non-finite value (" +
                name_of_non_finite(bits) + ")" + in_row(i / per_row, rows) +
                "; the store takes finite numbers only");
  }
}

Input::Input(const Schema& schema, std::span<const std::byte* const> columns, std::size_t rows)
    : schema_(schema), columns_(columns), rows_(rows) {
  if (columns.size() != schema.columns_in()) {
    throw Error("got " + std::to_string(columns.size()) + " columns; the store takes " +
                std::to_string(schema.columns_in()));
  }
}

const std::byte* Input::observation(std::size_t field, std::size_t row) const {
  return columns_[field] + row * schema_.observations[field].row_bytes();
}

const std::byte* Input::next_observation(std::size_t field, std::size_t row) const {
  return columns_[schema_.observations.size() + field] + row * schema_.observations[field].row_bytes();
}

const std::byte* Input::step(std::size_t field, std::size_t row) const {
  return columns_[2 * schema_.observations.size() + field] + row * schema_.steps[field].row_bytes();
}

void Input::validate() const {
  for (std::size_t f = 0; f < schema_.steps.size(); ++f)
    require_finite(schema_.steps[f], "", step(f, 0), rows_);
  for (std::size_t f = 0; f < schema_.observations.size(); ++f) {
    const Field& field = schema_.observations[f];
    require_finite(field, "", observation(f, 0), rows_);
    require_finite(field, "next_", next_observation(f, 0), rows_);
    if (field.stack == 1) continue;
    const std::size_t frame = field.frame_bytes();
    for (std::size_t row = 0; row < rows_; ++row) {
      if (std::memcmp(observation(f, row) + frame, next_observation(f, row), (field.stack - 1) * frame) ==
          0) {
        continue;
      }
      throw Error("field 'next_" + field.name + "'" + in_row(row, rows_) + ": its first " +
                  std::to_string(field.stack - 1) + " frames are not the last of '" + field.name +
                  "'; a stack moves on by one frame a step");
    }
  }
}

std::size_t Input::first_break(std::size_t row) const {
  const std::size_t count = schema_.observations.size();
  for (std::size_t f = 0; f < count; ++f) {
    const std::size_t bytes = schema_.observations[f].row_bytes();
    if (std::memcmp(observation(f, row), next_observation(f, row - 1), bytes) != 0) return f;
  }
  return count;
}

}  // namespace serl_fast
