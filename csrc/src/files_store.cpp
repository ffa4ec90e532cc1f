// Store: what it does with damage, and how its steps get into another store.
#include <algorithm>
#include <cstring>
#include <mutex>
#include <string>

#include "serl_fast/store_files.h"
#include "serl_fast/worker_pool.h"

namespace serl_fast {
namespace {

constexpr std::size_t kChunkBytes = std::size_t{4} << 20;  // copied while one Reading is held
constexpr std::size_t kFew = 4;                            // steps that one thread examines

}  // namespace

bool Store::skips_damaged() const { return files_ != nullptr && files_->skips_damaged(); }

bool Store::is_good(const Reading& reading, std::uint64_t id, const View& view) const {
  return files_ == nullptr || !first_damaged(reading, id, view);
}

std::optional<std::uint64_t> Store::first_damaged(const Reading& reading, std::uint64_t id,
                                                  const View& view) const {
  const bool is_sequence = view.length > 0;
  const std::size_t steps = is_sequence ? view.length : view.n_step;
  for (std::size_t k = 0; k < steps && id < reading.end(); ++k, ++id) {
    if (k > 0 && !is_sequence && files_->linked(id) && !follows(id)) return std::nullopt;
    if (!files_->good(id)) return id;
    const bool goes_on = id + 1 < reading.end() && follows(id + 1) && !ends_episode(row_of(id));
    if (is_sequence && view.pad == Pad::kLast && !goes_on) break;
    if (is_sequence && k + 1 == steps) break;
  }
  // The next action of the last step of a sequence is that of the step stored after it.
  if (is_sequence && id + 1 < reading.end() && !files_->good(id + 1)) return id + 1;
  return std::nullopt;
}

bool Store::require_good(std::uint64_t id) const {
  if (files_ == nullptr || files_->good(id)) return true;
  if (!files_->skips_damaged()) files_->raise_damage(id);
  return false;
}

// The first look at a step reads its records, from the disk if need be: that is for several threads.
void Store::examine(const Reading& reading, std::span<const std::uint64_t> ids, const View& view) const {
  std::vector<std::uint64_t> unknown;
  for (const std::uint64_t id : ids) {
    if (!files_->known_good(id)) unknown.push_back(id);
  }
  if (unknown.size() < kFew) return;
  WorkerPool::shared().run((unknown.size() + kFew - 1) / kFew, [&](std::size_t task) {
    for (std::size_t i = task * kFew; i < std::min(unknown.size(), (task + 1) * kFew); ++i) {
      first_damaged(reading, unknown[i], view);
    }
  });
}

void Store::require_good(const Reading& reading, std::span<const std::uint64_t> ids, const View& view) const {
  examine(reading, ids, view);
  for (const std::uint64_t id : ids) {
    if (const auto damaged = first_damaged(reading, id, view)) files_->raise_damage(*damaged);
  }
}

std::vector<Damage> Store::verify(std::uint64_t first, std::uint64_t last) const {
  std::vector<Damage> found;
  if (files_ == nullptr) return found;
  const Reading held = reading();
  for (std::uint64_t id = std::max(first, held.begin()); id < std::min(last, held.end()); ++id) {
    if (files_->good(id)) continue;
    found.push_back(
        files_->damage(id, true).value_or(Damage{id, "steps.0", 0, "it contradicts its neighbours"}));
  }
  return found;
}

// In a forked child the mutex may be held by a thread that did not come along.
void Store::flush() {
  if (files_ == nullptr) return;
  files_->require_writer();
  const std::lock_guard lock(writer_);
  files_->flush();
}

void Store::close() {
  if (files_ == nullptr || !files_->is_owner()) return;
  const std::lock_guard lock(writer_);
  files_->close();
}

// --- copies -----------------------------------------------------------------------------------------------

void Store::pack(std::size_t row, bool continues, std::vector<std::byte>& bytes) const {
  const auto add = [&](const std::byte* data, std::size_t count) {
    bytes.insert(bytes.end(), data, data + count);
  };
  for (std::size_t t = continues ? stack() : 0; t <= stack(); ++t) {
    for (std::size_t f = 0; f < schema().observations.size(); ++f) {
      // Older frames matter to stacks only; for others they may be of any other step.
      if (t + form_.observations[f].stack < stack()) continue;
      add(frame(f, slots(row)[t]), form_.observations[f].frame);
    }
  }
  for (std::size_t f = 0; f < schema().steps.size(); ++f) add(step_field(f).at(row), step_field(f).bytes);
}

const std::byte* Store::unpack(std::size_t row, bool continues, const std::byte* bytes) {
  const auto take = [&](std::byte* to, std::size_t count) {
    if (count != 0) std::memcpy(to, bytes, count);
    bytes += count;
  };
  for (std::size_t t = continues ? stack() : 0; t <= stack(); ++t) {
    for (std::size_t f = 0; f < schema().observations.size(); ++f) {
      if (t + form_.observations[f].stack < stack()) continue;
      take(frame(f, slots(row)[t]), form_.observations[f].frame);
    }
  }
  for (std::size_t f = 0; f < schema().steps.size(); ++f) take(step_field(f).at(row), step_field(f).bytes);
  return bytes;
}

void Store::copy_from(const Store& other) {
  const std::lock_guard lock(writer_);
  std::uint64_t next, last;
  {
    const Reading held = other.reading();
    next = held.begin();
    last = held.end();
    set_seed(other.seed());
    set_draws(other.draws());
  }
  start_at(next);
  bool unbroken = false;  // whether the step before `next` is there
  std::size_t chunk_bytes = kChunkBytes;
  std::vector<std::byte> bytes;
  std::vector<bool> planned;
  while (next < last) {
    bytes.clear();
    planned.clear();
    {
      // The other store's steps are held for as long as it takes to copy a chunk into memory, not into files.
      const Reading held = other.reading();
      if (held.begin() > next) {  // overtaken by the other's appends: what is here would have a gap
        next = held.begin();
        last = held.end();
        start_at(next);
        unbroken = false;
        chunk_bytes *= 4;
      }
      for (; next < last && bytes.size() < chunk_bytes; ++next) {
        if (!other.require_good(next)) {
          unbroken = false;
          continue;
        }
        planned.push_back(unbroken && other.follows(next));
        other.pack(row_of(next), planned.back(), bytes);
        unbroken = true;
      }
    }
    reserve(planned);
    const std::byte* from = bytes.data();
    for (const bool continues : planned) {
      const std::size_t row = begin_row(continues);
      from = unpack(row, continues, from);
      publish(row);
    }
  }
}

}  // namespace serl_fast
