// Stores on disk: a folder that outlives the process. docs/design/0004-replay-files.md says what is promised.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "serl_fast/field.h"
#include "serl_fast/mapped_file.h"
#include "serl_fast/store.h"
#include "serl_fast/store_header.h"

namespace serl_fast {

// When what was appended is forced to the disk. It survives the end of the process in any case.
enum class Sync {
  kNone,      // when the system sees fit, and on flush and close
  kInterval,  // every so many seconds, by a thread
  kEach,      // before append returns
};

enum class OnDamage {
  kRaise,  // an Error that names the block
  kSkip,   // samplers and copies pass over what needs it
};

struct OpenOptions {
  bool write = true;  // by one process at a time; others read what it publishes
  Sync sync = Sync::kNone;
  double sync_interval = 1.0;  // seconds
  bool verify_all = false;     // check every block when opening, not each one before it is first given out
  OnDamage damaged = OnDamage::kRaise;
  std::uint64_t seed = 0;  // of a store that is made now
  std::string note;        // the same: see StoreHeader
};

// Opens the store in the folder `path`. Where there is none and both are given, makes one for `schema` and
// `capacity` (0: not given). Where there is one, those that are given must equal its own.
// Throws FileError; Error for damage, another schema, capacity or format, or a second writer.
std::unique_ptr<Store> open_store(const std::string& path, const Schema* schema, std::size_t capacity,
                                  const OpenOptions& options);

// Makes `path` a store on disk that holds what `store` holds now. `path` has its old contents or the new
// ones, whatever happens. Replaced is only a snapshot of the same schema that nobody has changed since and
// that holds no other files; anything else is refused. Appends and samples go on meanwhile. Throws FileError,
// Error.
void snapshot(const Store& store, const std::string& path, const std::string& note = {});

// A store in memory with the contents of the store on disk.
std::unique_ptr<Store> load_store(const std::string& path, OnDamage damaged);

struct StoreInfo {
  StoreHeader header;
  std::uint64_t disk_bytes = 0;  // what the files occupy
  long writer = 0;               // the process that writes to it now; 0: none
  std::string damage;            // see header_damage()
};

StoreInfo inspect_store(const std::string& path);
// Whether a store seems to be there; what is in the files is not looked at.
bool is_store(const std::string& path);

}  // namespace serl_fast
