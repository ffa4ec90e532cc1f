// StoreFiles: what is written with a step, and how it is checked.
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <string>

#include "files_redo.h"
#include "serl_fast/crc32c.h"
#include "serl_fast/store_files.h"

namespace serl_fast {
namespace {

constexpr std::size_t kOwnFields = kMarkField + 1;  // where the schema's step fields begin

std::uint32_t crc_of(const Cells& cells, std::size_t row, std::uint32_t previous) {
  return crc32c(cells.at(row), cells.bytes, previous);
}

// What was written before is in the files when what is written after is, wherever this process is killed:
// only the compiler could change that. Readers in other processes go by the release of a checksum or of the
// range.
void in_order() { std::atomic_signal_fence(std::memory_order_seq_cst); }

}  // namespace

std::uint32_t JournalEntry::checksum() const {
  return crc32c(reinterpret_cast<const std::byte*>(this), offsetof(JournalEntry, own));
}

const JournalEntry& StoreFiles::entry(std::size_t row) const {
  return reinterpret_cast<const JournalEntry*>(journal_file_->data())[row];
}

void StoreFiles::put_entry(std::size_t row, JournalEntry entry) {
  entry.own = entry.checksum();
  auto& place = reinterpret_cast<JournalEntry*>(journal_file_->data())[row];
  in_order();
  std::memcpy(static_cast<void*>(&place), &entry, offsetof(JournalEntry, own));
  std::atomic_ref(place.own).store(entry.own, std::memory_order_release);
}

std::uint32_t* StoreFiles::checksums(std::uint32_t slot) const {
  return reinterpret_cast<std::uint32_t*>(checksums_file_->data()) + slot * groups_.size();
}

std::uint32_t StoreFiles::checksum(std::uint32_t slot, const Group& group) const {
  std::uint32_t crc = 0;
  for (const Cells& cells : group.cells) crc = crc_of(cells, slot, crc);
  return crc;
}

// With the checksums of its records, so that a record and its checksum that are both of another time show.
std::uint32_t StoreFiles::links(std::size_t row) const {
  std::uint32_t crc = crc_of(steps_[kMarkField], row, crc_of(steps_[kSlotsField], row, 0));
  const std::size_t bytes = groups_.size() * sizeof(std::uint32_t);
  for (std::size_t t = 0; t <= shape_.stack; ++t) {
    crc = crc32c(reinterpret_cast<const std::byte*>(checksums(slots(row)[t])), bytes, crc);
  }
  return crc;
}

std::uint32_t StoreFiles::cells(std::size_t row) const {
  std::uint32_t crc = 0;
  for (std::size_t f = kOwnFields; f < steps_.size(); ++f) crc = crc_of(steps_[f], row, crc);
  return crc;
}

void StoreFiles::commit(std::uint64_t id) {
  const std::size_t row = row_of(id);
  const bool continues = *steps_[kMarkField].at(row) != std::byte{0};
  for (std::size_t t = continues ? shape_.stack : 0; t <= shape_.stack; ++t) {
    const std::uint32_t slot = slots(row)[t];
    for (std::size_t g = 0; g < groups_.size(); ++g) checksums(slot)[g] = checksum(slot, groups_[g]);
  }
  put_entry(row, {.id = id, .links = links(row), .cells = cells(row)});
  set_level(id, kGood);
}

void StoreFiles::rewrite(std::uint64_t id, std::size_t field, const std::byte* value) {
  leave_snapshot();
  const std::size_t row = row_of(id);
  const Cells& target = steps_[field];
  JournalEntry changed = entry(row);
  changed.cells = 0;
  for (std::size_t f = kOwnFields; f < steps_.size(); ++f) {
    changed.cells =
        f == field ? crc32c(value, target.bytes, changed.cells) : crc_of(steps_[f], row, changed.cells);
  }
  changed.own = changed.checksum();
  Redo& redo = *reinterpret_cast<Redo*>(redo_file_->data());
  redo.entry = changed;
  redo.field = field;
  redo.bytes = target.bytes;
  if (target.bytes != 0) std::memcpy(redo.value(), value, target.bytes);
  in_order();
  std::atomic_ref(redo.own).store(redo.checksum(), std::memory_order_release);
  if (options_.sync == Sync::kEach) force(*redo_file_);
  if (target.bytes != 0) std::memcpy(target.at(row), value, target.bytes);
  put_entry(row, changed);
  if (options_.sync == Sync::kEach) {
    for (const auto& column : step_columns_) force(*column);
    force(*journal_file_);
  }
  in_order();
  std::atomic_ref(redo.own).store(~redo.checksum(), std::memory_order_release);
}

// --- checks -----------------------------------------------------------------------------------------------

std::atomic_ref<std::uint64_t> StoreFiles::level_word(std::uint64_t id) const {
  // The column's memory is not the object's own, so it does not become const with it.
  return std::atomic_ref(*reinterpret_cast<std::uint64_t*>(const_cast<Column&>(levels_).row(row_of(id))));
}

StoreFiles::Level StoreFiles::level(std::uint64_t id) const {
  const std::uint64_t known = level_word(id).load(std::memory_order_acquire);
  return known >> 3 == id + 1 ? static_cast<Level>(known & 7) : kUnknown;
}

void StoreFiles::set_level(std::uint64_t id, Level level) const {
  level_word(id).store((id + 1) << 3 | level, std::memory_order_release);
}

bool StoreFiles::linked(std::uint64_t id) const {
  const Level known = level(id);
  if (known != kUnknown) return known != kUnlinked;
  if (damage(id, false)) return false;
  set_level(id, kLinked);
  return true;
}

bool StoreFiles::good(std::uint64_t id) const {
  const Level known = level(id);
  if (known == kGood) return true;
  if (known == kUnlinked || (known == kDamaged && options_.write)) return false;
  if (!damage(id, true) || repair(id)) {
    set_level(id, kGood);
    return true;
  }
  // A reader does not remember it: the writer may be about to repair the step, see finish_redo().
  if (options_.write) set_level(id, linked(id) ? kDamaged : kUnlinked);
  return false;
}

bool StoreFiles::slot_exists(std::uint32_t slot) const {
  if (slot >= shape_.slots) return false;
  const std::size_t count = std::size_t{slot} + 1;
  for (std::size_t c = 0; c < record_columns_.size(); ++c) {
    if (!record_columns_[c]->usable_at_least(count * record_rows_[c])) return false;
  }
  return checksums_file_->usable_at_least(count * groups_.size() * sizeof(std::uint32_t));
}

// For a step whose links do not agree with the journal, but would if the checksums of its records were those
// that the records have: then the file of checksums is what is damaged.
std::optional<Damage> StoreFiles::wrong_checksum(std::uint64_t id) const {
  const std::size_t row = row_of(id);
  std::uint32_t crc = crc_of(steps_[kMarkField], row, crc_of(steps_[kSlotsField], row, 0));
  std::optional<Damage> first;
  for (std::size_t t = 0; t <= shape_.stack; ++t) {
    const std::uint32_t slot = slots(row)[t];
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      const std::uint32_t right = checksum(slot, groups_[g]);
      crc = crc32c(reinterpret_cast<const std::byte*>(&right), sizeof(right), crc);
      if (first || right == checksums(slot)[g]) continue;
      first = Damage{id, "checksums", (slot * groups_.size() + g) * sizeof(right),
                     "the checksum of observation record " + std::to_string(slot) + " is damaged"};
    }
  }
  return crc == entry(row).links ? first : std::nullopt;
}

std::optional<Damage> StoreFiles::damage(std::uint64_t id, bool records) const {
  const std::size_t row = row_of(id);
  const auto found = [&](const std::string& file, std::size_t offset, std::string what) {
    return Damage{id, file, offset, std::move(what)};
  };
  const std::size_t at = row * sizeof(JournalEntry);
  if (!journal_file_->usable_at_least(at + sizeof(JournalEntry)))
    return found("journal", at, "the file ends before");
  const JournalEntry noted = entry(row);
  if (!noted.is_of(id)) return found("journal", at, "the entry of the step is damaged");
  for (std::size_t c = 0; c < step_columns_.size(); ++c) {
    if (step_columns_[c]->usable_at_least((row + 1) * step_rows_[c])) continue;
    return found(step_columns_[c]->name(), row * step_rows_[c], "the file ends before");
  }
  const std::string steps = step_columns_[0]->name();
  const std::size_t cell = row * step_rows_[0];
  for (std::size_t t = 0; t <= shape_.stack; ++t) {
    const std::uint32_t slot = slots(row)[t];
    if (slot_exists(slot)) continue;
    return found(
        steps, cell,
        "the step points to observation record " + std::to_string(slot) + ", which the files do not hold");
  }
  if (links(row) != noted.links) {
    if (records) {
      if (auto wrong = wrong_checksum(id)) return wrong;
    }
    const std::size_t first = slots(row)[0] * groups_.size() * sizeof(std::uint32_t);
    return found(
        steps, cell,
        "the step's links to its observations are damaged, or the checksums of those (checksums, byte " +
            std::to_string(first) + ")");
  }
  if (noted.lost != 0) {
    return found(steps, cell,
                 "the step was damaged when the store was opened, and its records are used again");
  }
  if (!records) return std::nullopt;
  if (cells(row) != noted.cells) return found(steps, cell, "the step's own fields are damaged");
  for (std::size_t t = 0; t <= shape_.stack; ++t) {
    const std::uint32_t slot = slots(row)[t];
    for (std::size_t g = 0; g < groups_.size(); ++g) {
      if (checksum(slot, groups_[g]) == checksums(slot)[g]) continue;
      return found(groups_[g].file, slot * groups_[g].cells[0].stride,
                   "observation record " + std::to_string(slot) + " is damaged");
    }
  }
  return std::nullopt;
}

void StoreFiles::raise_damage(std::uint64_t id) const {
  const Damage found = damage(id, true).value_or(Damage{id, "steps.0", 0, "it contradicts its neighbours"});
  throw Error(folder_ + "/" + found.file + ", byte " + std::to_string(found.offset) + ": " + found.what +
              ", so step " + std::to_string(id) + " is lost; " +
              (skips_damaged()
                   ? "samplers pass over such steps, but this one was asked for by its place; ask for others"
                   : "open the store with damaged='skip' to pass over such steps") +
              ", or run python -m serl_fast.replay verify to list them");
}

}  // namespace serl_fast
