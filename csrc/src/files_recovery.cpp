// StoreFiles: which steps are live, told from the journal alone.
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <string>
#include <vector>

#include "files_redo.h"
#include "serl_fast/store_files.h"
#include "serl_fast/worker_pool.h"

namespace serl_fast {
namespace {

constexpr std::uint64_t kMostSteps = std::uint64_t{1} << 40;
// Newest steps whose entries may be missing before the journal as a whole is in doubt: those of a page.
constexpr std::uint64_t kFewSteps = 4096 / sizeof(JournalEntry);
constexpr std::size_t kAtOnce = 64;  // steps that a thread checks

}  // namespace

// The step after the newest one that has an entry.
std::uint64_t StoreFiles::newest_end() const {
  const std::size_t rows = std::min(journal_file_->usable() / sizeof(JournalEntry), shape_.rows);
  std::uint64_t end = header_.base;
  for (std::size_t row = 0; row < rows; ++row) {
    const JournalEntry& noted = entry(row);
    if (noted.id >= end && noted.id < kMostSteps && row_of(noted.id) == row && noted.is_of(noted.id)) {
      end = noted.id + 1;
    }
  }
  return end;
}

void StoreFiles::recover() {
  const std::string boot = boot_id();
  const bool same_boot = !boot.empty() && boot == header_.boot;
  power_failed_ = !same_boot && !header_.durable;
  std::uint64_t end = newest_end();
  std::uint64_t expected = 0;  // the end as others noted it, in case the newest entries are damaged
  if (header_.closed) {
    expected = header_.end;
  } else if (same_boot && was_ready_ && own_control_ == nullptr) {
    expected = control_->range.end.load();
    if (expected > end + kFewSteps && expected < kMostSteps && !skips_damaged()) {
      throw Error(folder_ + "/journal: its entries end with step " + std::to_string(end) + ", but " +
                  std::to_string(expected) +
                  " were appended; open the store with damaged='skip' to go on with " +
                  "what the journal says");
    }
    if (expected > end + kFewSteps) expected = 0;
  }
  end = std::max(end, expected);
  std::uint64_t begin = std::max(header_.base, end > shape_.capacity ? end - shape_.capacity : 0);
  if (options_.write) {
    if (!(same_boot && was_ready_)) {
      control_->drawing.seed = header_.seed;
      control_->drawing.draws = header_.draws;
    }
    finish_redo(begin, end);
    if (power_failed_) drop_unfinished(begin, end);
  }
  control_->range.begin.store(begin);
  control_->range.end.store(end);
  if (options_.write) control_->range.closed.store(0);  // only now: finish_redo() has done its work
  // Pins of processes that are gone would stay where another process has got the same number since.
  if (control_file_ != nullptr && alone_) {
    for (LiveRange::Pin& pin : control_->range.pins) pin.word.store(0);
    control_->range.pins_used.store(0);
  }
  if (options_.write) check_links(begin, end);
  control_->ready = Control::kReady;
}

// After a power failure the newest steps may be there in parts. They were never promised, so they are no
// damage.
void StoreFiles::drop_unfinished(std::uint64_t begin, std::uint64_t& end) {
  const std::uint64_t before = end;
  for (; end > begin && damage(end - 1, true); --end) {
    const std::size_t row = row_of(end - 1);
    if (journal_file_->usable_at_least((row + 1) * sizeof(JournalEntry))) {
      std::memset(journal_file_->data() + row * sizeof(JournalEntry), 0, sizeof(JournalEntry));
    }
  }
  if (end != before) header_.base = begin;  // older steps had been given up for those
}

// Brings a change to its end that was cut off. After a close there is none: what stands there is older.
void StoreFiles::finish_redo(std::uint64_t begin, std::uint64_t end) {
  Redo& redo = *reinterpret_cast<Redo*>(redo_file_->data());
  const std::size_t room = redo_file_->usable() - sizeof(Redo);
  if (redo.bytes > room || redo.own != redo.checksum()) return;
  const std::uint64_t id = redo.entry.id;
  const bool fits = redo.entry.is_of(id) && id >= begin && id < end && redo.field > kMarkField &&
                    redo.field < steps_.size() && redo.bytes == steps_[redo.field].bytes;
  const std::size_t row = row_of(id);
  bool there = fits && !(header_.closed && header_.durable) &&
               journal_file_->usable_at_least((row + 1) * sizeof(JournalEntry));
  for (std::size_t c = 0; c < step_columns_.size(); ++c) {
    there = there && step_columns_[c]->usable_at_least((row + 1) * step_rows_[c]);
  }
  if (there) {
    if (redo.bytes != 0) std::memcpy(steps_[redo.field].at(row), redo.value(), redo.bytes);
    put_entry(row, redo.entry);
  }
  redo.own = ~redo.checksum();
  force(*redo_file_);  // before the header says that the store is in use again
}

// A writer was killed while it changed this step, and no other one has come since: be that one for a moment.
bool StoreFiles::repair(std::uint64_t id) const {
  if (options_.write || redo_file_ == nullptr || !redo_file_->usable_at_least(sizeof(Redo))) return false;
  Redo& redo = *reinterpret_cast<Redo*>(redo_file_->data());
  if (redo.entry.id != id || redo.bytes > redo_file_->usable() - sizeof(Redo) ||
      redo.own != redo.checksum()) {
    return false;
  }
  try {
    open_for_writing();
  } catch (const Error&) {
    return false;
  }
  return !damage(id, true);
}

void StoreFiles::open_for_writing() const {
  OpenOptions options;
  options.damaged = OnDamage::kSkip;
  open_store(folder_, nullptr, 0, options)->close();
}

void StoreFiles::finish_rewriting() const {
  // Without its own control block nobody closes the range; and the process that writes opens it again itself.
  if (own_control_ != nullptr || (options_.write && is_owner() && !closed_)) return;
  if (!control_file_->in_place()) {
    throw Error(folder_ + ": another store has taken the place of this one; open it again");
  }
  // Not the process number tells whether the writer lives, for another process may have got it since.
  try {
    if (!WriterLock::take(folder_)) return;
    open_for_writing();
  } catch (const FileError& error) {
    if (error.code() == EAGAIN) return;  // somebody else was quicker
    throw Error(
        folder_ +
        ": a process that changed steps was killed; open the store for writing once, which brings that to "
        "its end (" +
        error.what() + ")");
  }
}

// Finds the slots in use, and steps whose slots cannot be believed: two steps may share a record only as
// neighbours do, or giving up one of them would free what the other one needs. Where they contradict one
// another the newer one is right: it has got the slots of a step that was lost.
void StoreFiles::check_links(std::uint64_t begin, std::uint64_t end) {
  struct User {
    std::uint64_t step = 0;  // 1 + its number
    std::size_t place = 0;
  };
  std::vector<User> users;
  const auto continues = [&](std::uint64_t id) { return *steps_[kMarkField].at(row_of(id)) != std::byte{0}; };
  const auto is_free = [&](std::uint64_t id, std::size_t t) {
    const std::uint32_t slot = slots(row_of(id))[t];
    if (slot >= users.size() || users[slot].step == 0) return true;
    const User& user = users[slot];
    return continues(user.step - 1) && t > user.place && id + 1 + (t - user.place) == user.step;
  };
  const auto agrees = [&](std::uint64_t id) {
    const std::uint32_t* own = slots(row_of(id));
    if (id + 1 < end && level(id + 1) == kLinked && continues(id + 1) &&
        !std::equal(own + 1, own + 1 + shape_.stack, slots(row_of(id + 1)))) {
      return false;
    }
    for (std::size_t t = 0; t <= shape_.stack; ++t) {
      if (!is_free(id, t) || std::find(own, own + t, own[t]) != own + t) return false;
    }
    return true;
  };
  for (std::uint64_t id = end; id-- > begin;) {
    if (damage(id, false) || !agrees(id)) {
      set_level(id, kUnlinked);
      has_unlinked_ = true;
      give_up(id);
      continue;
    }
    set_level(id, kLinked);
    for (std::size_t t = 0; t <= shape_.stack; ++t) {
      const std::uint32_t slot = slots(row_of(id))[t];
      if (slot >= users.size()) users.resize(std::max<std::size_t>(slot + 1, users.size() * 3 / 2));
      users[slot] = {id + 1, t};
    }
  }
  while (!users.empty() && users.back().step == 0) users.pop_back();
  taken_.resize(users.size());
  for (std::size_t slot = 0; slot < users.size(); ++slot) taken_[slot] = users[slot].step != 0;
}

// For good: what is written over the step's records might make it look whole later.
void StoreFiles::give_up(std::uint64_t id) {
  const std::size_t row = row_of(id);
  if (!journal_file_->usable_at_least((row + 1) * sizeof(JournalEntry))) return;
  JournalEntry noted = entry(row);
  if (!noted.is_of(id)) return;
  noted.lost = 1;
  put_entry(row, noted);
}

std::vector<bool> StoreFiles::slots_in_use() const { return taken_; }

void StoreFiles::verify_all() {
  const Reading held(control_->range, shape_.capacity, this);
  const std::uint64_t begin = held.begin(), end = held.end();
  std::atomic<std::uint64_t> damaged{0}, first{end};
  WorkerPool::shared().run((end - begin + kAtOnce - 1) / kAtOnce, [&](std::size_t task) {
    for (std::uint64_t id = begin + task * kAtOnce; id < std::min(end, begin + (task + 1) * kAtOnce); ++id) {
      if (good(id)) continue;
      ++damaged;
      std::uint64_t oldest = first.load();
      while (id < oldest && !first.compare_exchange_weak(oldest, id)) {
      }
    }
  });
  if (damaged.load() != 0 && options_.verify_all && !skips_damaged()) raise_damage(first.load());
}

}  // namespace serl_fast
