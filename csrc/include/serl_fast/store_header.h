// What a store on disk says of itself: the file `header`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "serl_fast/field.h"

namespace serl_fast {

struct StoreHeader {
  static constexpr std::uint32_t kFormat = 1;  // of all files of a store

  Schema schema;
  std::uint64_t capacity = 0;
  std::vector<std::pair<std::string, std::uint64_t>> columns;  // name and bytes of a row of every column
  std::uint64_t seed = 0;
  std::uint64_t draws = 0;
  std::uint64_t base = 0;        // no step before this one is in the files
  std::uint64_t end = 0;         // steps ever appended, as of the last close
  bool closed = false;           // nobody has written since `end` was noted
  bool durable = false;          // everything up to `end` was on the disk when this was written
  bool snapshot = false;         // made by snapshot() and not changed since: another one may replace it
  std::string boot;              // which run of the system wrote this; empty: unknown
  std::string note;              // of whoever made the store; nothing here reads it
  std::uint64_t generation = 0;  // the higher, the newer
};

// The newest valid one of the two copies. Throws FileError where there is no file, Error where neither copy
// is valid, is of another format or holds what cannot be.
StoreHeader read_header(const std::string& folder);
// What is wrong with one of the two copies while the other one is valid; empty: nothing. Throws as
// read_header.
std::string header_damage(const std::string& folder);
// Writes the older of the two copies, as the next generation, and waits for the disk; a crash at any instant
// leaves a valid copy. Throws FileError.
void write_header(const std::string& folder, StoreHeader& header);

// Of the running system; empty where it does not say.
std::string boot_id();

}  // namespace serl_fast
