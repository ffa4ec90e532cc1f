// What makes a Store outlive its process: journal, checksums and control block beside its columns.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "serl_fast/column.h"
#include "serl_fast/files.h"
#include "serl_fast/live_range.h"
#include "serl_fast/mapped_file.h"
#include "serl_fast/store_header.h"
#include "serl_fast/table.h"
#include "serl_fast/writer_lock.h"

namespace serl_fast {

// The journal's entry of step id, in row id % rows. It is written last: a step counts when its entry is
// whole.
struct JournalEntry {
  std::uint64_t id = 0;
  std::uint32_t links = 0;  // CRC of slots, continuity mark and the checksums of the records in those slots
  std::uint32_t cells = 0;  // CRC of the schema's step fields
  std::uint32_t lost = 0;   // 1: was damaged when the store was opened, and its slots are used again
  std::uint32_t reserved[2] = {};
  std::uint32_t own = 0;  // CRC of the bytes before it

  std::uint32_t checksum() const;
  bool is_of(std::uint64_t step) const { return id == step && own == checksum(); }
};
static_assert(sizeof(JournalEntry) == 32);

// The file `range`: what processes that have the store open share. Pointer-free.
struct Control {
  static constexpr std::uint64_t kReady = 0x314c5254434c5253;  // recovery is done, the rest is right
  static constexpr std::uint64_t kOpening = kReady + 1;        // recovery goes on; the rest was right before

  LiveRange range;
  Drawing drawing;  // the writer's
  std::atomic<std::uint64_t> ready{0};
  std::atomic<std::uint64_t> processes{0};  // the PID namespace of those who have the store open. 0: unknown
};

// A snapshot took the place of the store while it was opened: open it again.
class Replaced : public Error {
 public:
  using Error::Error;
};

// The sizes of a store that its files depend on.
struct StoreShape {
  std::size_t capacity;
  std::size_t rows;   // of the step table
  std::size_t slots;  // of the record table
  std::size_t stack;
};

// The first two fields of the step table; see Store.
constexpr std::size_t kSlotsField = 0;
constexpr std::size_t kMarkField = 1;

// The files of one open store. The writer's calls come one at a time, from the process that opened it; the
// checks may come from any thread, about steps that a Reading holds.
class StoreFiles {
 public:
  // `create`: the files are new, and `header` says for what.
  StoreFiles(std::string folder, StoreHeader header, const OpenOptions& options, bool create);
  ~StoreFiles();
  StoreFiles(const StoreFiles&) = delete;
  StoreFiles& operator=(const StoreFiles&) = delete;

  // A column of the store; throws Error where the header knows another layout.
  Column column(const std::string& name, std::size_t rows, std::size_t row_bytes);
  // Ties the files to the tables that were made from column(), and finds out which steps are live.
  void start(const Table& steps, const Table& records, const StoreShape& shape);

  const std::string& folder() const { return folder_; }
  const OpenOptions& options() const { return options_; }
  bool skips_damaged() const { return options_.damaged == OnDamage::kSkip; }
  LiveRange& range() { return control_->range; }
  Drawing& drawing() { return options_.write ? control_->drawing : own_drawing_; }

  std::size_t column_bytes() const;  // of the column files, as large as they are now

  // --- the writer -----------------------------------------------------------------------------------------
  // Throws Error in a process that may not write, or where forcing earlier steps to the disk failed.
  void require_writer();
  // Which slots the live steps use: a flag for each up to the last one in use.
  std::vector<bool> slots_in_use() const;
  // Steps that were live when the store was opened and whose slots are unknown: the marks of their neighbours
  // do not tell which slots die with a step.
  bool has_unlinked() const { return has_unlinked_; }
  // Makes room for that many rows and slots in the journal and the checksums.
  void ensure(std::size_t rows, std::size_t slots);
  // Step `id` is written: makes it count. Its new records are those that its mark says.
  void commit(std::uint64_t id);
  // After a step was published. kEach: forces it to the disk, or waits for `more` steps that the same call
  // brings.
  void appended(bool more);
  // Steps before this one may be overwritten as far as the disk is concerned.
  std::uint64_t kept_from() const { return kept_from_; }
  // Gives `field` of a live, good step another value; a crash leaves the old one or the new one.
  void rewrite(std::uint64_t id, std::size_t field, const std::byte* value);
  // The steps begin at `first` now, and there are none.
  void restart(std::uint64_t first);
  // Forces everything to the disk. Throws FileError.
  void flush();
  // flush(), and lets another process write. Nothing can be appended afterwards. Throws FileError where
  // forcing anything to the disk has failed since the store was opened: the system reports that once, and may
  // have dropped what it could not write.
  void close();
  // Whether this process opened the store, rather than one that it is a fork of.
  bool is_owner() const;

  // The contents are closed to readers, and have been for a while. Where their writer is gone, brings what it
  // was rewriting to its end and opens them again. Any process. Throws Error where that cannot be done.
  void finish_rewriting() const;

  // --- checks ---------------------------------------------------------------------------------------------
  // Whether slots and continuity mark of a step are those that were written. Cheap.
  bool linked(std::uint64_t id) const;
  // Whether all of a step is what was written. Reads its records the first time.
  bool good(std::uint64_t id) const;
  bool known_good(std::uint64_t id) const { return level(id) == kGood; }
  // What is wrong with a step; none: nothing.
  std::optional<Damage> damage(std::uint64_t id, bool records) const;
  [[noreturn]] void raise_damage(std::uint64_t id) const;

 private:
  // What is known of a step: that its slots and mark are right, that all of it is, or that something is not.
  enum Level : std::uint64_t { kUnknown, kLinked, kGood, kDamaged, kUnlinked };
  // Cells of a record that one checksum covers: those of one column.
  struct Group {
    std::string file;
    std::vector<Cells> cells;
  };
  struct Redo;
  class Syncer;

  std::shared_ptr<MappedFile> map(const std::string& name, std::size_t bytes, bool create);
  void open_control();
  void make_groups(const Table& records);
  void await_writer();
  void begin_recovery();
  void require_same_processes() const;
  void share_control();
  void sync_files();
  void force(const MappedFile& file);  // to the disk; remembers that it failed
  std::exception_ptr failure() const;
  const JournalEntry& entry(std::size_t row) const;
  std::size_t row_of(std::uint64_t id) const { return static_cast<std::size_t>(id % shape_.rows); }
  std::uint32_t* slots(std::size_t row) const {
    return reinterpret_cast<std::uint32_t*>(steps_[kSlotsField].at(row));
  }
  std::uint32_t* checksums(std::uint32_t slot) const;
  std::uint32_t checksum(std::uint32_t slot, const Group& group) const;
  std::uint32_t links(std::size_t row) const;
  std::optional<Damage> wrong_checksum(std::uint64_t id) const;
  std::uint32_t cells(std::size_t row) const;
  bool slot_exists(std::uint32_t slot) const;
  std::atomic_ref<std::uint64_t> level_word(std::uint64_t id) const;
  Level level(std::uint64_t id) const;
  void set_level(std::uint64_t id, Level level) const;
  void put_entry(std::size_t row, JournalEntry entry);
  void save_header(bool closed, bool durable);
  // A snapshot that is about to be changed is a store of its own from now on.
  void leave_snapshot();

  // recovery, in files_recovery.cpp
  void recover();
  std::uint64_t newest_end() const;
  void drop_unfinished(std::uint64_t begin, std::uint64_t& end);
  void finish_redo(std::uint64_t begin, std::uint64_t end);
  bool repair(std::uint64_t id) const;
  void open_for_writing() const;
  void check_links(std::uint64_t begin, std::uint64_t end);
  void give_up(std::uint64_t id);
  void verify_all();

  std::string folder_;
  StoreHeader header_;
  OpenOptions options_;
  const bool create_;
  long owner_ = 0;  // the process that opened the store
  std::optional<WriterLock> lock_;
  bool alone_ = false;         // nobody else has the store open, not even for reading
  bool was_ready_ = false;     // the control block was right when this object took the lock
  bool power_failed_ = false;  // the files may hold some of the last writes and lack others

  std::vector<std::shared_ptr<MappedFile>> columns_;
  std::shared_ptr<MappedFile> control_file_, checksums_file_, journal_file_, redo_file_;
  std::unique_ptr<Control> own_control_;  // where the shared one cannot be written
  Control* control_ = nullptr;
  Drawing own_drawing_;

  StoreShape shape_{};
  std::vector<Cells> steps_;
  std::vector<Group> groups_;
  std::vector<std::shared_ptr<MappedFile>> step_columns_, record_columns_;
  std::vector<std::size_t> step_rows_, record_rows_;  // bytes of a row of each

  // Per row: (1 + step number) << 3 | Level.
  Column levels_;
  std::vector<bool> taken_;
  bool has_unlinked_ = false;
  std::uint64_t kept_from_ = 0;
  std::size_t unsynced_ = 0;
  bool started_ = false;
  std::atomic<bool> closed_{false};
  mutable std::mutex failing_;
  std::exception_ptr failure_;   // the first time that forcing something to the disk failed
  std::exception_ptr unraised_;  // what the thread of kInterval met, for the next append
  std::unique_ptr<Syncer> syncer_;
};

}  // namespace serl_fast
