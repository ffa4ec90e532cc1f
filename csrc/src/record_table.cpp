#include "serl_fast/record_table.h"

#include <bit>
#include <limits>
#include <string>

#include "serl_fast/error.h"

namespace serl_fast {

RecordTable::RecordTable(std::span<const Field> fields, std::size_t max_records) {
  if (max_records > std::numeric_limits<std::uint32_t>::max()) {
    throw Error("the capacity needs up to " + std::to_string(max_records) +
                " observation records; a store can have 4294967295");
  }
  columns_.reserve(fields.size());
  for (const Field& field : fields) columns_.emplace_back(max_records, field.frame_bytes());
  const std::uint64_t ring = std::bit_ceil(std::uint64_t{max_records});
  mask_ = ring - 1;
  slots_ = Column(ring, sizeof(std::uint32_t));
  free_.reserve(max_records);  // so that push and drop_before never allocate
}

std::uint64_t RecordTable::push() {
  std::uint32_t slot;
  if (free_.empty()) {
    slot = fresh_++;
  } else {
    slot = free_.back();
    free_.pop_back();
  }
  slots()[end_ & mask_] = slot;
  return end_++;
}

void RecordTable::drop_before(std::uint64_t sequence) {
  for (; begin_ < sequence; ++begin_) free_.push_back(slot(begin_));
}

}  // namespace serl_fast
