// The contents of a store as plain columns, for checkpoints.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "serl_fast/column.h"

namespace serl_fast {

// The contents of a store, oldest step first, in a form that does not depend on where anything lay.
struct StateView {
  std::size_t steps = 0;
  std::size_t records = 0;
  // One byte a step. Step i with continues[i] = 0 brings max_stack - 1 older records (only their stacked
  // fields matter), its observation and its next observation; with 1 it brings its next observation only.
  const std::byte* continues = nullptr;
  std::vector<const std::byte*> record_columns;  // [records, frame] per observation field
  std::vector<const std::byte*> step_columns;    // [steps, …] per step field
  std::uint64_t seed = 0;
  std::uint64_t draws = 0;
  std::uint64_t appended = 0;
};

// A StateView that owns its memory.
struct State {
  std::size_t steps = 0;
  std::size_t records = 0;
  Column continues;
  std::vector<Column> record_columns;
  std::vector<Column> step_columns;
  std::uint64_t seed = 0;
  std::uint64_t draws = 0;
  std::uint64_t appended = 0;

  StateView view() const;
};

// Memory for a part of a store in the form of a StateView: the caller's, of so many steps and records.
struct StateSpace {
  std::size_t steps = 0;
  std::size_t records = 0;
  std::byte* continues = nullptr;
  std::vector<std::byte*> record_columns;  // one per observation field; null: not wanted
  std::vector<std::byte*> step_columns;    // one per step field; null: not wanted
};

// What of it was filled: the steps [first, first + steps) and their records.
struct Excerpt {
  std::uint64_t first = 0;
  std::size_t steps = 0;
  std::size_t records = 0;
};

}  // namespace serl_fast
