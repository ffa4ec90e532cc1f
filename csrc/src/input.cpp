#include "serl_fast/input.h"

#include <cstdint>
#include <cstring>
#include <string>

#include "serl_fast/error.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace serl_fast {
namespace {

constexpr std::uint32_t kExponent = 0x7f800000U;  // all ones in an infinity and in every NaN
constexpr std::uint32_t kLowestOfExponent = 0x00800000U;
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

// Adding one to an exponent of all ones carries into the sign. No early exit: nearly all numbers are finite.
bool look_at_each(const std::byte* data, std::size_t count) {
  std::uint32_t found = 0;
  for (std::size_t i = 0; i < count; ++i) found |= (load_bits(data, i) & kExponent) + kLowestOfExponent;
  return (found & kSign) == 0;
}

// Whether all numbers are finite.
bool all_finite(const std::byte* data, std::size_t count) {
#if defined(__SSE2__)
  constexpr std::size_t kTogether = 4;
  if (count < kTogether) return look_at_each(data, count);
  const __m128i exponent = _mm_set1_epi32(kExponent);
  const __m128i lowest = _mm_set1_epi32(kLowestOfExponent);
  __m128i found = _mm_setzero_si128();
  const auto look_from = [&](std::size_t i) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(data + i * sizeof(float)));
    found = _mm_or_si128(found, _mm_add_epi32(_mm_and_si128(bits, exponent), lowest));
  };
  for (std::size_t i = 0; i < count - kTogether; i += kTogether) look_from(i);
  look_from(count - kTogether);  // the rest, and perhaps some of the others again
  return _mm_movemask_ps(_mm_castsi128_ps(found)) == 0;
#else
  return look_at_each(data, count);
#endif
}

InputForm::Size size_of_row(const Field& field) {
  return {field.frame_bytes(), field.row_bytes(), field.stack};
}

}  // namespace

void require_finite(const Field& field, const std::byte* data, std::size_t rows) {
  if (field.dtype != Dtype::kFloat32) return;
  const std::size_t per_row = field.row_bytes() / sizeof(float);
  const std::size_t count = rows * per_row;
  if (all_finite(data, count)) return;
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t bits = load_bits(data, i);
    if ((bits & kExponent) != kExponent) continue;
    throw Error("field '" + field.name + "' holds a non-finite value (" + name_of_non_finite(bits) + ")" +
                in_row(i / per_row, rows) + "; the store takes finite numbers only");
  }
}

InputForm::InputForm(const Schema& given) : schema(given) {
  for (const Field& field : schema.observations) observations.push_back(size_of_row(field));
  for (const Field& field : schema.steps) steps.push_back(size_of_row(field));
  for (std::size_t column = 0; column < schema.columns_in(); ++column) {
    const Field field = schema.column_in(column);
    if (field.dtype != Dtype::kFloat32) continue;
    const Floats floats{column, field.row_bytes() / sizeof(float)};
    (column < observations.size() ? observed : others).push_back(floats);
  }
  for (std::size_t f = 0; f < observations.size(); ++f) {
    if (observations[f].stack > 1) stacked.push_back(f);
  }
}

Input::Input(const InputForm& form, std::span<const std::byte* const> columns, std::size_t rows)
    : form_(form), columns_(columns), rows_(rows) {
  const std::size_t observations = form.observations.size();
  const std::size_t wanted = 2 * observations + form.steps.size();
  if (columns.size() != wanted) {
    throw Error("got " + std::to_string(columns.size()) + " columns; the store takes " +
                std::to_string(wanted));
  }
  next_observations_ = columns.data() + observations;
  steps_ = next_observations_ + observations;
}

void Input::validate() const {
  for (const auto [column, count] : form_.others) {
    if (!all_finite(columns_[column], rows_ * count)) require_finite_column(column);
  }
  for (const std::size_t f : form_.stacked) require_moving_stack(f);
}

void Input::validate_observations(std::size_t row) const {
  for (const auto [column, count] : form_.observed) {
    if (!all_finite(observation(column, row), count)) require_finite_column(column);
  }
}

void Input::require_finite_column(std::size_t column) const {
  require_finite(form_.schema.column_in(column), columns_[column], rows_);
}

void Input::require_moving_stack(std::size_t f) const {
  const auto& [frame, row_bytes, stack] = form_.observations[f];
  for (std::size_t row = 0; row < rows_ && frame != 0; ++row) {
    if (std::memcmp(observation(f, row) + frame, next_observation(f, row), (stack - 1) * frame) == 0)
      continue;
    const std::string& name = form_.schema.observations[f].name;
    throw Error("field 'next_" + name + "'" + in_row(row, rows_) + ": its first " +
                std::to_string(stack - 1) + " frames are not the last of '" + name +
                "'; a stack moves on by one frame a step");
  }
}

}  // namespace serl_fast
