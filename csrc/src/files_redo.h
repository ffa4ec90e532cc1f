// The file `redo`: the change of one step that is under way.
#pragma once

#include <cstddef>
#include <cstdint>

#include "serl_fast/crc32c.h"
#include "serl_fast/store_files.h"

namespace serl_fast {

// Whole while the step's old value may be half overwritten; else its checksum is wrong.
struct StoreFiles::Redo {
  JournalEntry entry;  // of the step with the new value
  std::uint64_t field;
  std::uint64_t bytes;  // of the value, which follows this struct
  std::uint32_t reserved;
  std::uint32_t own;  // CRC of the value and of what stands before

  std::byte* value() { return reinterpret_cast<std::byte*>(this + 1); }
  std::uint32_t checksum() {
    return crc32c(value(), bytes, crc32c(reinterpret_cast<const std::byte*>(this), offsetof(Redo, reserved)));
  }
};

}  // namespace serl_fast
