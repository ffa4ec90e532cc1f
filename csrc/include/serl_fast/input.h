// Transitions on their way into the store: read access and every check that needs no store.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

#include "serl_fast/field.h"

namespace serl_fast {

// Throws Error at the first number that is not finite, in `rows` rows of a float32 field; the message calls
// the field prefix + name. Fields of another dtype pass.
void require_finite(const Field& field, std::string_view prefix, const std::byte* data, std::size_t rows);

// A view of the caller's columns, in the order of Schema::columns_in, row after row without gaps.
class Input {
 public:
  Input(const Schema& schema, std::span<const std::byte* const> columns, std::size_t rows);

  std::size_t rows() const { return rows_; }
  const std::byte* observation(std::size_t field, std::size_t row) const;
  const std::byte* next_observation(std::size_t field, std::size_t row) const;
  const std::byte* step(std::size_t field, std::size_t row) const;

  // Throws Error where a number is not finite, or where the older frames of a stacked next observation are
  // not the newer frames of the observation (the store could not give such a stack back).
  void validate() const;

  // The first observation field of `row` that is not, byte for byte, the next observation of the row before;
  // the number of observation fields where all are.
  std::size_t first_break(std::size_t row) const;

 private:
  const Schema& schema_;
  std::span<const std::byte* const> columns_;
  std::size_t rows_;
};

}  // namespace serl_fast
