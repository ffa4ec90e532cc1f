// Transitions on their way into the store: read access and every check that needs no store.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "serl_fast/field.h"

namespace serl_fast {

// Throws Error at the first number that is not finite, in `rows` rows of a float32 field. Fields of another
// dtype pass.
void require_finite(const Field& field, const std::byte* data, std::size_t rows);

// A schema with the sizes that every append needs, worked out once.
struct InputForm {
  explicit InputForm(const Schema& given);

  struct Size {
    std::size_t frame;  // bytes of one frame
    std::size_t row;    // bytes of a row: all frames of a stack
    std::size_t stack;
  };
  // A column of numbers that must be finite.
  struct Floats {
    std::size_t column;
    std::size_t count;  // of a row
  };
  Schema schema;
  std::vector<Size> observations;
  std::vector<Size> steps;
  std::vector<Floats> observed;      // observations
  std::vector<Floats> others;        // next observations and steps
  std::vector<std::size_t> stacked;  // observations
};

// A view of the caller's columns, in the order of Schema::columns_in, row after row without gaps.
class Input {
 public:
  Input(const InputForm& form, std::span<const std::byte* const> columns, std::size_t rows);

  std::size_t rows() const { return rows_; }
  const std::byte* observation(std::size_t field, std::size_t row) const {
    return columns_[field] + row * form_.observations[field].row;
  }
  const std::byte* next_observation(std::size_t field, std::size_t row) const {
    return next_observations_[field] + row * form_.observations[field].row;
  }
  const std::byte* step(std::size_t field, std::size_t row) const {
    return steps_[field] + row * form_.steps[field].row;
  }

  // Throws Error where a number is not finite, or where the older frames of a stacked next observation are
  // not the newer frames of the observation (the store could not give such a stack back). Numbers of
  // observations are left to validate_observations().
  void validate() const;
  // Throws Error where a number of a row's observations is not finite. For rows that begin a stretch, in
  // their order: where a row continues, its observations equal the next ones of the row before, which are
  // validated.
  void validate_observations(std::size_t row) const;

 private:
  void require_moving_stack(std::size_t field) const;
  void require_finite_column(std::size_t column) const;

  const InputForm& form_;
  std::span<const std::byte* const> columns_;
  const std::byte* const* next_observations_ = nullptr;
  const std::byte* const* steps_ = nullptr;
  std::size_t rows_;
};

}  // namespace serl_fast
