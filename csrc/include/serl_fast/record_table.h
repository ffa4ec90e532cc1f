// The observation table: every field of an observation at one instant, stored once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "serl_fast/column.h"
#include "serl_fast/field.h"

namespace serl_fast {

// A queue of records. Sequence numbers grow by one with each record and are never reused; the live records
// are those of [begin, end). Where a record lies is decided by a free list, last freed first used, so that
// the memory in use follows the number of live records and not the worst case that is reserved.
//
// Not synchronised: the store that owns the table lets one thread write, or many read.
class RecordTable {
 public:
  // Throws Error where max_records does not fit 32 bits; std::bad_alloc.
  RecordTable(std::span<const Field> fields, std::size_t max_records);

  std::uint64_t begin() const { return begin_; }
  std::uint64_t end() const { return end_; }
  std::size_t slots_used() const { return fresh_; }  // most records that were ever live at once

  // Adds one record, its content undefined, and returns its sequence number. Never allocates memory.
  std::uint64_t push();
  // Frees the records before `sequence`.
  void drop_before(std::uint64_t sequence);
  void clear() { drop_before(end_); }

  // Where a live record lies in the columns.
  std::uint32_t slot(std::uint64_t sequence) const { return slots()[sequence & mask_]; }
  const Column& column(std::size_t field) const { return columns_[field]; }
  std::byte* frame(std::size_t field, std::uint64_t sequence) { return columns_[field].row(slot(sequence)); }
  const std::byte* frame(std::size_t field, std::uint64_t sequence) const {
    return columns_[field].row(slot(sequence));
  }

 private:
  const std::uint32_t* slots() const { return reinterpret_cast<const std::uint32_t*>(slots_.data()); }
  std::uint32_t* slots() { return reinterpret_cast<std::uint32_t*>(slots_.data()); }

  std::vector<Column> columns_;      // one per field
  Column slots_;                     // ring: sequence & mask_ -> slot
  std::vector<std::uint32_t> free_;  // slots that held a record once
  std::uint64_t mask_ = 0;
  std::uint64_t begin_ = 0;
  std::uint64_t end_ = 0;
  std::uint32_t fresh_ = 0;  // slots from here on were never used
};

}  // namespace serl_fast
