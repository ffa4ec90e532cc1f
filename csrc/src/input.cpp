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

#if defined(__GNUC__)
#define SERL_FAST_ALWAYS_INLINE inline __attribute__((always_inline))
#else
#define SERL_FAST_ALWAYS_INLINE inline
#endif

// No early exit: the loop is then vectorised.
SERL_FAST_ALWAYS_INLINE bool look_at_all(const std::byte* data, std::size_t count) {
  std::uint32_t found = 0;
  for (std::size_t i = 0; i < count; ++i) {
    found |= static_cast<std::uint32_t>((load_bits(data, i) & kExponent) == kExponent);
  }
  return found == 0;
}

#if defined(__GNUC__) && defined(__x86_64__)
__attribute__((target("avx2"))) bool look_at_all_avx2(const std::byte* data, std::size_t count) {
  return look_at_all(data, count);
}
const bool kHasAvx2 = __builtin_cpu_supports("avx2") != 0;
#endif

// Whether all numbers are finite. Most of what an append of states has to do.
bool all_finite(const std::byte* data, std::size_t count) {
#if defined(__GNUC__) && defined(__x86_64__)
  if (count >= 8 && kHasAvx2) return look_at_all_avx2(data, count);
#endif
  return look_at_all(data, count);
}

InputForm::Size size_of_row(const Field& field) {
  const std::size_t row = field.row_bytes();
  return {field.frame_bytes(), row, field.stack, field.dtype == Dtype::kFloat32 ? row / sizeof(float) : 0};
}

}  // namespace

void require_finite(const Field& field, std::string_view prefix, const std::byte* data, std::size_t rows) {
  if (field.dtype != Dtype::kFloat32) return;
  const std::size_t per_row = field.row_bytes() / sizeof(float);
  const std::size_t count = rows * per_row;
  if (all_finite(data, count)) return;
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t bits = load_bits(data, i);
    if ((bits & kExponent) != kExponent) continue;
    throw Error("field '" + std::string(prefix) + field.name + "' holds a non-finite value (" +
                name_of_non_finite(bits) + ")" + in_row(i / per_row, rows) +
                "; the store takes finite numbers only");
  }
}

InputForm::InputForm(const Schema& given) : schema(given) {
  for (const Field& field : schema.observations) observations.push_back(size_of_row(field));
  for (const Field& field : schema.steps) steps.push_back(size_of_row(field));
}

Input::Input(const InputForm& form, std::span<const std::byte* const> columns, std::size_t rows)
    : form_(form), columns_(columns), rows_(rows) {
  const std::size_t wanted = 2 * form.observations.size() + form.steps.size();
  if (columns.size() == wanted) return;
  throw Error("got " + std::to_string(columns.size()) + " columns; the store takes " +
              std::to_string(wanted));
}

void Input::validate() const {
  const Schema& schema = form_.schema;
  for (std::size_t f = 0; f < form_.steps.size(); ++f) {
    if (!all_finite(step(f, 0), rows_ * form_.steps[f].floats)) {
      require_finite(schema.steps[f], "", step(f, 0), rows_);
    }
  }
  for (std::size_t f = 0; f < form_.observations.size(); ++f) {
    const std::size_t count = rows_ * form_.observations[f].floats;
    if (!all_finite(observation(f, 0), count)) {
      require_finite(schema.observations[f], "", observation(f, 0), rows_);
    }
    if (!all_finite(next_observation(f, 0), count)) {
      require_finite(schema.observations[f], "next_", next_observation(f, 0), rows_);
    }
    if (form_.observations[f].stack > 1) require_moving_stack(f);
  }
}

void Input::require_moving_stack(std::size_t f) const {
  const auto& [frame, row_bytes, stack, floats] = form_.observations[f];
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
