// A small store whose every number tells the step it is of.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "serl_fast/mixture.h"
#include "serl_fast/store.h"

namespace serl_fast::test {

// Step n: state n, next state n + 1, reward n.
inline Schema numbered_schema() {
  return Schema{{{"observations", Dtype::kFloat32, {3}, 1}},
                {{"rewards", Dtype::kFloat32, {}, 1},
                 {"terminated", Dtype::kBool, {}, 1},
                 {"truncated", Dtype::kBool, {}, 1}}};
}

inline void append_number(Store& store, float number) {
  const std::vector<float> now(3, number), next(3, number + 1);
  const std::uint8_t no = 0;
  const std::vector<const std::byte*> columns = {
      reinterpret_cast<const std::byte*>(now.data()), reinterpret_cast<const std::byte*>(next.data()),
      reinterpret_cast<const std::byte*>(&number), reinterpret_cast<const std::byte*>(&no),
      reinterpret_cast<const std::byte*>(&no)};
  store.append(columns, 1, {});
}

inline std::unique_ptr<Store> numbered_store(int first, int count, std::size_t capacity = 100) {
  auto store = std::make_unique<Store>(numbered_schema(), capacity, static_cast<std::uint64_t>(first));
  for (int i = 0; i < count; ++i) append_number(*store, static_cast<float>(first + i));
  return store;
}

// Memory for a batch of transitions; every column is wanted.
struct NumberedBatch {
  NumberedBatch(const Layout& layout, std::size_t rows) : sources(rows, -1) {
    for (const Output& output : layout.columns) memory.emplace_back(rows * output.row_bytes());
    for (auto& column : memory) pointers.push_back(column.data());
    for (std::size_t c = 0; c < layout.columns.size(); ++c) {
      if (layout.columns[c].field.name == "rewards") rewards_column = c;
    }
  }
  std::vector<float> rewards() const {
    const auto* values = reinterpret_cast<const float*>(pointers[rewards_column]);
    return {values, values + sources.size()};
  }

  std::vector<std::vector<std::byte>> memory;
  std::vector<std::byte*> pointers;
  std::vector<std::int32_t> sources;
  std::size_t rewards_column = 0;
};

}  // namespace serl_fast::test
