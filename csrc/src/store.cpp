#include "serl_fast/store.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "serl_fast/gather.h"
#include "serl_fast/store_files.h"

namespace serl_fast {
namespace {

Schema validated(Schema schema, std::size_t capacity) {
  schema.validate();
  if (capacity == 0) throw Error("the capacity is 0; a store holds at least one transition");
  if (capacity >> 31 != 0) throw Error("the capacity is " + std::to_string(capacity) + "; at most 2^31 - 1");
  return schema;
}

ColumnMaker maker(StoreFiles* files) {
  return [files](const std::string& name, std::size_t rows, std::size_t row_bytes) {
    return files == nullptr ? Column(rows, row_bytes) : files->column(name, rows, row_bytes);
  };
}

LiveRange* start(StoreFiles* files, LiveRange* own, const Table& steps, const Table& records,
                 const StoreShape& shape) {
  if (files == nullptr) return own;
  files->start(steps, records, shape);
  return &files->range();
}

std::vector<std::size_t> record_bytes(const Schema& schema) {
  std::vector<std::size_t> bytes;
  for (const Field& field : schema.observations) bytes.push_back(field.frame_bytes());
  return bytes;
}

std::vector<std::size_t> step_bytes(const Schema& schema) {
  std::vector<std::size_t> bytes = {(schema.max_stack() + 1) * sizeof(std::uint32_t), 1};
  for (const Field& field : schema.steps) bytes.push_back(field.row_bytes());
  return bytes;
}

// Most fields of a step are one number, which takes a call of memcpy longer than the copy.
void copy_cell(std::byte* to, const std::byte* from, std::size_t bytes) {
  if (bytes == 1) {
    *to = *from;
  } else if (bytes == sizeof(float)) {
    std::memcpy(to, from, sizeof(float));
  } else if (bytes != 0) {
    std::memcpy(to, from, bytes);
  }
}

bool equal(const std::byte* a, const std::byte* b, std::size_t bytes) {
  return bytes == 0 || std::memcmp(a, b, bytes) == 0;
}

}  // namespace

// In the worst case every step is a stretch of its own and needs its observation, its next observation and
// the older frames of its stacks.
Store::Store(Schema schema, std::size_t capacity, std::uint64_t seed)
    : Store(std::move(schema), capacity, nullptr) {
  drawing_->seed = seed;
}

Store::Store(Schema schema, std::size_t capacity, std::unique_ptr<StoreFiles> files)
    : form_(validated(std::move(schema), capacity)),
      stack_(form_.schema.max_stack()),
      capacity_(capacity),
      spare_(std::clamp<std::size_t>(capacity / 128, 16, 65536)),
      rows_(capacity_ + spare_),
      rewards_(form_.schema.step_index("rewards")),
      terminated_(form_.schema.step_index("terminated")),
      truncated_(form_.schema.step_index("truncated")),
      files_(std::move(files)),
      records_("records", record_bytes(form_.schema), rows_ * (stack() + 1), maker(files_.get())),
      steps_("steps", step_bytes(form_.schema), rows_, maker(files_.get())),
      own_range_(files_ == nullptr ? std::make_unique<LiveRange>() : nullptr),
      range_(start(files_.get(), own_range_.get(), steps_, records_,
                   {capacity_, rows_, rows_ * (stack_ + 1), stack_})),
      drawing_(files_ == nullptr ? &own_drawing_ : &files_->drawing()),
      pool_(rows_ * (stack() + 1), (spare_ + 2) * (stack() + 1)) {
  next_row_ = row_of(range_->end.load());
  if (files_ == nullptr) return;
  const std::vector<bool> in_use = files_->slots_in_use();
  pool_.reset(in_use.size(), in_use);
  slots_used_ = in_use.size();
  opened_at_ = range_->begin.load();
}

Store::~Store() = default;

void Store::require_writable() const {
  settle_after_fork();
  if (files_ != nullptr) return files_->require_writer();
  if (abandoned_) {
    throw Error(
        "this process was forked while another thread changed the store, so its copy can only be read; fork "
        "while "
        "nobody appends, or share a store on disk (open)");
  }
}

void Store::after_fork() const {
  static std::mutex settling;
  const std::lock_guard lock(settling);
  if (forks_.load() == forks()) return;
  if (files_ == nullptr) {
    for (LiveRange::Pin& pin : range_->pins) pin.word.store(0);
    range_->closed.store(0);
    const auto is_free = [](std::mutex& mutex) {
      return std::unique_lock(mutex, std::try_to_lock).owns_lock();
    };
    Priorities* kept = priorities_.load();
    if (!is_free(writer_) || (kept != nullptr && !is_free(kept->mutex()))) abandoned_ = true;
  }
  forks_.store(forks(), std::memory_order_release);
}

// --- appending
// -------------------------------------------------------------------------------------------------

void Store::append(std::span<const std::byte* const> columns, std::size_t rows,
                   std::span<const Continues> continues) {
  require_writable();
  const Input input(form_, columns, rows);
  input.validate();  // before the lock: it reads the caller's memory only
  const std::lock_guard lock(writer_);
  append_locked(input, continues);
}

bool Store::try_append(std::span<const std::byte* const> columns, Continues continues) {
  if (files_ != nullptr && files_->options().sync == Sync::kEach) return false;
  require_writable();
  const Input input(form_, columns, 1);
  input.validate();
  const std::unique_lock lock(writer_, std::try_to_lock);
  if (!lock) return false;
  append_locked(input, std::span(&continues, 1));
  return true;
}

void Store::append_locked(const Input& input, std::span<const Continues> continues) {
  if (input.rows() == 1) {
    const Continues wish = continues.empty() ? Continues::kDecide : continues[0];
    const bool follows = decide(input, 0, wish);
    if (files_ == nullptr) return write(input, 0, follows);
    reserve({follows});
    write(input, 0, follows);
    return files_->appended(/*more=*/false);
  }
  std::vector<bool> planned(input.rows());
  for (std::size_t row = 0; row < input.rows(); ++row) {
    planned[row] = decide(input, row, row < continues.size() ? continues[row] : Continues::kDecide);
  }
  reserve(planned);
  for (std::size_t row = 0; row < input.rows(); ++row) {
    write(input, row, planned[row]);
    if (files_ != nullptr) files_->appended(row + 1 < input.rows());
  }
}

// Before anything is written, so that a full disk leaves everything as it was.
void Store::reserve(const std::vector<bool>& planned) {
  if (files_ == nullptr) return;
  files_->require_writer();  // the store may have been closed while this call waited for its turn
  // Slots that a writer before this one gave up count as free here, whoever reads them.
  for (Backoff backoff; !old_readers_left_; backoff.wait()) {
    old_readers_left_ = range_->unread_before() >= opened_at_;
    if (old_readers_left_) break;
    if (backoff.long_since()) range_->release_dead();
  }
  const std::size_t rows = planned.size();
  std::size_t fresh = 0, live = 0, peak = 0;  // slots that the steps take; those of rows_ in a row, the most
  for (std::size_t i = 0; i < rows; ++i) {
    fresh += planned[i] ? 1 : stack() + 1;
    live += planned[i] ? 1 : stack() + 1;
    if (i >= rows_) live -= planned[i - rows_] ? 1 : stack() + 1;
    peak = std::max(peak, live);
  }
  const std::size_t total = rows_ * (stack() + 1);
  const auto slots = [&] {
    const std::size_t reused = std::min(pool_.available(), fresh);
    const std::size_t most = rows < rows_ ? total : pool_.used() + peak + stack();
    return std::min({total, most, pool_.used() + fresh - reused});
  };
  if (slots() > slots_reserved_) pool_.reclaim(unused_before());
  const std::size_t needed = slots();
  const std::size_t steps = std::min<std::uint64_t>(rows_, range_->end.load() + rows);
  if (needed <= slots_reserved_ && steps <= steps_reserved_) return;
  steps_.ensure(steps);
  records_.ensure(needed);
  files_->ensure(steps, needed);
  steps_reserved_ = std::max(steps, steps_reserved_);
  slots_reserved_ = std::max(needed, slots_reserved_);
}

bool Store::decide(const Input& input, std::size_t row, Continues wish) const {
  const Obstacle obstacle = wish == Continues::kNo ? Obstacle::kUnwanted : obstacle_to(input, row);
  if (obstacle == Obstacle::kNone) return true;
  input.validate_observations(row);
  if (wish == Continues::kYes) refuse_to_continue(obstacle, input, row);
  return false;
}

Store::Obstacle Store::obstacle_to(const Input& input, std::size_t row) const {
  if (row > 0) {
    if (*input.step(terminated_, row - 1) != std::byte{0}) return Obstacle::kTerminated;
    if (*input.step(truncated_, row - 1) != std::byte{0}) return Obstacle::kTruncated;
  } else {
    const std::uint64_t end = range_->end.load(std::memory_order_relaxed);
    if (range_->begin.load(std::memory_order_relaxed) == end) return Obstacle::kEmpty;
    if (files_ != nullptr && !files_->good(end - 1)) return Obstacle::kDamaged;
    const std::size_t last = row_after(next_row_, rows_ - 1);
    if (flag(terminated_, last)) return Obstacle::kTerminated;
    if (flag(truncated_, last)) return Obstacle::kTruncated;
  }
  for (std::size_t f = 0; f < form_.observations.size(); ++f) {
    if (!is_next_of_before(input, row, f)) return Obstacle::kDifferent;
  }
  return Obstacle::kNone;
}

bool Store::is_next_of_before(const Input& input, std::size_t row, std::size_t f) const {
  const InputForm::Size& size = form_.observations[f];
  if (row > 0) return equal(input.observation(f, row), input.next_observation(f, row - 1), size.row);
  const std::uint32_t* next = slots(row_after(next_row_, rows_ - 1)) + stack() + 1 - size.stack;
  for (std::size_t t = 0; t < size.stack; ++t) {
    if (!equal(frame(f, next[t]), input.observation(f, 0) + t * size.frame, size.frame)) return false;
  }
  return true;
}

void Store::refuse_to_continue(Obstacle obstacle, const Input& input, std::size_t row) const {
  std::string why = "the store is empty";
  if (obstacle == Obstacle::kDamaged) why = "the previous step is damaged";
  if (obstacle == Obstacle::kTerminated) why = "the previous step was terminated";
  if (obstacle == Obstacle::kTruncated) why = "the previous step was truncated";
  if (obstacle == Obstacle::kDifferent) {
    std::size_t f = 0;  // the last one if the caller has changed its memory meanwhile
    while (f + 1 < form_.observations.size() && is_next_of_before(input, row, f)) ++f;
    const std::string& name = schema().observations[f].name;
    why = "field '" + name + "' differs from field 'next_" + name +
          "' of the previous step; pass False where a new stretch begins";
  }
  const std::string where = input.rows() > 1 ? "row " + std::to_string(row) + ": " : "";
  throw Error(where + "continues is True, but " + why);
}

void Store::write(const Input& input, std::size_t row, bool continues) {
  const std::size_t target = begin_row(continues);
  const std::uint32_t* own = slots(target);
  for (std::size_t f = 0; f < form_.observations.size(); ++f) {
    const InputForm::Size& size = form_.observations[f];
    const std::size_t first = stack() - size.stack;
    for (std::size_t t = 0; !continues && t < size.stack; ++t) {
      copy_cell(frame(f, own[first + t]), input.observation(f, row) + t * size.frame, size.frame);
    }
    copy_cell(frame(f, own[stack()]), input.next_observation(f, row) + (size.stack - 1) * size.frame,
              size.frame);
  }
  for (std::size_t f = 0; f < form_.steps.size(); ++f) {
    const Cells& cells = step_field(f);
    copy_cell(cells.at(target), input.step(f, row), cells.bytes);
  }
  publish(target);
}

std::size_t Store::begin_row(bool continues) {
  const std::uint64_t id = range_->end.load(std::memory_order_relaxed);
  const std::size_t row = next_row_;
  // The row's previous step was given up long ago, but a reader may still be at it.
  Backoff backoff;
  while (id >= rows_ && unused_before_ <= id - rows_) {
    if (unused_before() > id - rows_) break;
    backoff.wait();
    if (backoff.long_since()) range_->release_dead();
  }
  std::uint32_t* own = slots(row);
  std::size_t t = 0;
  if (continues) {
    for (const std::uint32_t* before = slots(row_after(row, rows_ - 1)) + 1; t < stack(); ++t)
      own[t] = before[t];
  }
  for (; t <= stack(); ++t) own[t] = take_slot();
  continues_mark(row) = std::byte{continues};
  return row;
}

std::uint32_t Store::take_slot() {
  Backoff backoff;
  while (pool_.available() == 0) {
    // Looking at the readers costs as much as an append: a few slots more let it be done now and then only.
    if (pool_.untouched() > 0 && pool_.retired() < std::min<std::size_t>(spare_ / 4, 64)) break;
    pool_.reclaim(unused_before());
    if (pool_.available() + pool_.untouched() > 0) break;
    backoff.wait();
    if (backoff.long_since()) range_->release_dead();
  }
  const std::uint32_t slot = pool_.take();
  slots_used_.store(pool_.used(), std::memory_order_relaxed);
  return slot;
}

// The new step counts before the oldest is given up: whatever happens in between, `capacity` whole steps are
// there.
void Store::publish(std::size_t row) {
  const std::uint64_t id = range_->end.load(std::memory_order_relaxed);
  const std::uint64_t oldest = range_->begin.load(std::memory_order_relaxed);
  const bool full = id + 1 - oldest > capacity_;
  Priorities* priorities = priorities_.load(std::memory_order_relaxed);
  std::unique_lock<std::mutex> lock;
  if (priorities != nullptr) {
    lock = std::unique_lock(priorities->mutex());
    priorities->insert(row);
    if (full) priorities->remove(row_after(row, spare_));
  }
  if (files_ != nullptr) files_->commit(id);
  range_->end.store(id + 1, std::memory_order_release);
  next_row_ = row_after(row, 1);
  if (full) give_up_oldest(oldest, row_after(row, spare_));
}

void Store::give_up_oldest(std::uint64_t oldest, std::size_t row) {
  range_->begin.store(oldest + 1, std::memory_order_release);
  if (files_ != nullptr && files_->has_unlinked()) return give_up_unlinked(oldest);
  // Of a step whose successor follows it only the oldest frame goes; of the last step of a stretch all.
  const std::uint32_t* gone = slots(row);
  const std::size_t count = continues_mark(row_after(row, 1)) != std::byte{0} ? 1 : stack() + 1;
  if (!pool_.can_retire(count)) pool_.reclaim(unused_before());
  for (std::size_t t = 0; t < count; ++t) pool_.retire(gone[t], oldest);
}

// Near a step whose slots and mark are unknown, only the slots themselves say what is still needed.
void Store::give_up_unlinked(std::uint64_t oldest) {
  if (!files_->linked(oldest)) return;
  if (!pool_.can_retire(stack() + 1)) pool_.reclaim(unused_before());
  const std::uint32_t* gone = slots(row_of(oldest));
  const std::uint64_t last = std::min(oldest + stack(), range_->end.load() - 1);
  for (std::size_t t = 0; t <= stack(); ++t) {
    bool needed = false;
    for (std::uint64_t id = oldest + 1; id <= last && !needed; ++id) {
      const std::uint32_t* kept = slots(row_of(id));
      needed = files_->linked(id) && std::find(kept, kept + stack() + 1, gone[t]) != kept + stack() + 1;
    }
    if (!needed) pool_.retire(gone[t], oldest);
  }
}

std::uint64_t Store::unused_before() {
  const std::uint64_t unread = range_->unread_before();
  const std::uint64_t unused = files_ == nullptr ? unread : std::min(unread, files_->kept_from());
  // What was once out of reach stays so: a reader that was held up may pin an older step than it will read.
  unused_before_ = std::max(unused_before_, unused);
  return unused_before_;
}

// --- changing what is there
// ------------------------------------------------------------------------------------

std::size_t Store::relabel(std::size_t step, std::span<const std::int64_t> ids, const std::byte* values) {
  const Field& field = schema().steps.at(step);
  if (step == terminated_ || step == truncated_) {
    throw Error("field '" + field.name + "' says where episodes end and cannot be relabelled");
  }
  require_finite(field, values, ids.size());
  const Cells& cells = step_field(step);
  require_writable();
  const std::lock_guard lock(writer_);
  require_writable();
  const std::vector<bool> wanted = changeable(ids);
  std::size_t written = 0;
  // In parts, so that readers are kept waiting for a few microseconds at a time.
  const std::size_t part = std::max<std::size_t>(1, 65536 / std::max<std::size_t>(cells.bytes, 64));
  for (std::size_t first = 0; first < ids.size(); first += part) {
    const Rewriting rewriting(*range_);
    for (std::size_t i = first; i < std::min(first + part, ids.size()); ++i) {
      if (!wanted[i]) continue;
      const auto id = static_cast<std::uint64_t>(ids[i]);
      if (files_ != nullptr) {
        files_->rewrite(id, kOwn + step, values + i * cells.bytes);
      } else {
        copy_cell(cells.at(row_of(id)), values + i * cells.bytes, cells.bytes);
      }
      ++written;
    }
  }
  if (files_ != nullptr) files_->appended(/*more=*/false);
  return written;
}

// Which of the ids are live. A damaged one is not, or an Error; a checksum over it would only hide the
// damage.
std::vector<bool> Store::changeable(std::span<const std::int64_t> ids) const {
  const std::uint64_t begin = range_->begin.load(), end = range_->end.load();
  std::vector<bool> live(ids.size());
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const auto id = static_cast<std::uint64_t>(ids[i]);
    live[i] = ids[i] >= 0 && id >= begin && id < end;
    if (!live[i] || files_ == nullptr || files_->good(id)) continue;
    if (!files_->skips_damaged()) files_->raise_damage(id);
    live[i] = false;
  }
  return live;
}

void Store::prioritize(const PriorityOptions& options) {
  require_writable();  // who does not see the appends cannot rank them
  auto made = std::make_unique<Priorities>(options, rows_);
  const std::lock_guard lock(writer_);
  if (own_priorities_ != nullptr) throw Error("the store keeps priorities already");
  for (std::uint64_t id = range_->begin.load(); id < range_->end.load(); ++id) made->insert(row_of(id));
  own_priorities_ = std::move(made);
  priorities_.store(own_priorities_.get(), std::memory_order_release);
}

std::size_t Store::update_priorities(std::span<const std::int64_t> ids, std::span<const float> errors) {
  Priorities* kept = priorities();
  if (kept == nullptr) throw Error("the store keeps no priorities; call prioritize first");
  kept->require_errors(errors);
  std::vector<std::uint32_t> rows;
  std::vector<float> live;
  const std::lock_guard lock(kept->mutex());  // under it the live steps are those of the tree
  const std::uint64_t begin = range_->begin.load(), end = range_->end.load();
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const auto id = static_cast<std::uint64_t>(ids[i]);
    if (ids[i] < 0 || id < begin || id >= end) continue;
    rows.push_back(static_cast<std::uint32_t>(row_of(id)));
    live.push_back(errors[i]);
  }
  kept->update(rows, live);
  return rows.size();
}

// --- looking
// ---------------------------------------------------------------------------------------------------

std::uint64_t Store::id_of(std::size_t row, std::uint64_t end) const {
  const std::uint64_t newest = end - 1;
  return newest - (newest + rows_ - row) % rows_;
}

void Store::gather(std::span<const std::int64_t> ages, const Layout& layout,
                   std::span<std::byte* const> out) const {
  gather_from(reading(), ages, false, layout, out);
}

void Store::gather_ids(std::span<const std::int64_t> ids, const Layout& layout,
                       std::span<std::byte* const> out) const {
  gather_from(reading(), ids, true, layout, out);
}

void Store::gather_from(const Reading& held, std::span<const std::int64_t> numbers, bool are_ids,
                        const Layout& layout, std::span<std::byte* const> out) const {
  const std::uint64_t starts = layout.view.starts(held.size());
  const std::uint64_t first = are_ids ? held.begin() : 0;
  std::vector<std::uint64_t> ids(numbers.size());
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    const auto number = static_cast<std::uint64_t>(numbers[i]);
    if (numbers[i] < 0 || number < first || number - first >= starts) {
      throw std::out_of_range((are_ids ? "id " : "index ") + std::to_string(numbers[i]) + " is outside the " +
                              std::to_string(starts) +
                              (layout.view.length > 1 ? " starts of sequences" : " transitions") +
                              " of the store; " + std::to_string(first) + " is the oldest");
    }
    ids[i] = held.begin() + (number - first);
  }
  copy(held, ids, layout, out);
  put_ids(layout, ids, out);
}

std::vector<std::uint8_t> Store::continues(const Reading& reading) const {
  std::vector<std::uint8_t> marks(reading.size());
  for (std::size_t age = 1; age < marks.size(); ++age) {
    marks[age] = follows(reading.begin() + age);
  }
  return marks;
}

bool Store::follows(std::uint64_t id) const {
  if (files_ != nullptr && !(files_->linked(id) && files_->linked(id - 1))) return false;
  return continues_mark(row_of(id)) != std::byte{0};
}

std::vector<std::int64_t> Store::episode_starts(const Reading& reading) const {
  std::vector<std::int64_t> starts;
  for (std::uint64_t id = reading.begin(); id < reading.end(); ++id) {
    // A step never continues one that ended its episode.
    if (id == reading.begin() || !follows(id)) {
      starts.push_back(static_cast<std::int64_t>(id - reading.begin()));
    }
  }
  return starts;
}

std::size_t Store::bytes_used() const {
  if (files_ != nullptr && !files_->options().write) return files_->column_bytes();
  const std::size_t steps = std::min<std::size_t>(range_->end.load(), rows_);
  return slots_used_.load(std::memory_order_relaxed) * records_.row_bytes() + steps * steps_.row_bytes();
}

}  // namespace serl_fast
