// Transitions for the tests of the store: every number of a step can be told from its time.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "serl_fast/store.h"
#include "serl_fast/view.h"

namespace serl_fast::test {

constexpr std::size_t kPixels = 12;  // elements of one frame
constexpr std::size_t kState = 5;

inline Schema make_schema(std::size_t stack = 1) {
  return Schema{{{"observations/front", Dtype::kUint8, {kPixels}, stack},
                 {"observations/state", Dtype::kFloat32, {kState}, 1}},
                {{"actions", Dtype::kInt64, {2}, 1},
                 {"rewards", Dtype::kFloat32, {}, 1},
                 {"terminated", Dtype::kBool, {}, 1},
                 {"truncated", Dtype::kBool, {}, 1}}};
}

// Memory for a number of rows: of the columns of Schema::columns_in, or of a batch.
struct Rows {
  Rows(const Schema& schema, std::size_t count, std::size_t columns) : rows(count) {
    for (std::size_t i = 0; i < columns; ++i) memory.emplace_back(count * schema.column_in(i).row_bytes());
  }
  Rows(const Layout& layout, std::size_t count) : rows(count) {
    for (const Output& output : layout.columns) memory.emplace_back(count * output.row_bytes());
  }

  template <typename T>
  T* as(std::size_t column) {
    return reinterpret_cast<T*>(memory[column].data());
  }
  std::vector<std::byte*> pointers() {
    std::vector<std::byte*> result;
    for (auto& column : memory) result.push_back(column.data());
    return result;
  }
  std::vector<const std::byte*> const_pointers() {
    const auto mutable_pointers = pointers();
    return {mutable_pointers.begin(), mutable_pointers.end()};
  }

  std::size_t rows;
  std::vector<std::vector<std::byte>> memory;
};

// The columns of make_schema, and of a batch of transitions.
enum Column : std::size_t {
  kFront,
  kVector,
  kNextFront,
  kNextVector,
  kActions,
  kRewards,
  kTerminated,
  kTruncated,
  kMasks,
  kDiscounts,
  kIds,
  kWeights
};

// Row `row` becomes the step from `time` to time + 1, whose stacks reach back to `first`, the start of the
// episode.
inline void fill(Rows& rows, std::size_t row, int time, int first, std::size_t stack, bool terminated = false,
                 bool truncated = false) {
  const auto put_observation = [&](std::size_t front, std::size_t vector, int at) {
    for (std::size_t t = 0; t < stack; ++t) {
      const int seen = std::max(first, at - static_cast<int>(stack - 1 - t));
      for (std::size_t p = 0; p < kPixels; ++p) {
        rows.as<std::uint8_t>(front)[(row * stack + t) * kPixels + p] = static_cast<std::uint8_t>(seen);
      }
    }
    for (std::size_t p = 0; p < kState; ++p)
      rows.as<float>(vector)[row * kState + p] = static_cast<float>(at);
  };
  put_observation(kFront, kVector, time);
  put_observation(kNextFront, kNextVector, time + 1);
  rows.as<std::int64_t>(kActions)[2 * row] = rows.as<std::int64_t>(kActions)[2 * row + 1] = time;
  rows.as<float>(kRewards)[row] = static_cast<float>(time);
  rows.as<std::uint8_t>(kTerminated)[row] = terminated;
  rows.as<std::uint8_t>(kTruncated)[row] = truncated;
}

inline Rows one(int time, int first, std::size_t stack = 1, bool terminated = false, bool truncated = false) {
  const Schema schema = make_schema(stack);
  Rows rows(schema, 1, schema.columns_in());
  fill(rows, 0, time, first, stack, terminated, truncated);
  return rows;
}

inline void append(Store& store, Rows rows, Continues continues = Continues::kDecide) {
  store.append(rows.const_pointers(), rows.rows, std::span(&continues, 1));
}

// Whether batch row `row` is the step that fill() makes of these arguments.
inline bool is_step(Rows& batch, std::size_t row, int time, int first, std::size_t stack) {
  const Schema schema = make_schema(stack);
  Rows expected(schema, 1, schema.columns_in());
  fill(expected, 0, time, first, stack);
  for (std::size_t i = 0; i < kTerminated; ++i) {
    const std::size_t bytes = schema.column_in(i).row_bytes();
    for (std::size_t b = 0; b < bytes; ++b) {
      if (expected.memory[i][b] != batch.memory[i][row * bytes + b]) return false;
    }
  }
  return true;
}

}  // namespace serl_fast::test
