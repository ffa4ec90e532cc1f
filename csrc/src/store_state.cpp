// Store::state, Store::load and Store::copy_steps.
#include <algorithm>
#include <cstring>
#include <mutex>
#include <string>

#include "serl_fast/store_files.h"

namespace serl_fast {

// The live steps, all of them checked.
std::vector<std::uint64_t> Store::whole(const Reading& reading) const {
  std::vector<std::uint64_t> ids;
  ids.reserve(reading.size());
  for (std::uint64_t id = reading.begin(); id < reading.end(); ++id) {
    if (require_good(id)) ids.push_back(id);
  }
  return ids;
}

State Store::state() const {
  const Reading held = reading();
  const std::vector<std::uint64_t> ids = whole(held);
  std::vector<std::uint8_t> marks(ids.size());
  for (std::size_t i = 1; i < ids.size(); ++i) marks[i] = ids[i] == ids[i - 1] + 1 && follows(ids[i]);
  State state{.steps = marks.size(),
              .records = 0,
              .continues = Column(marks.size(), 1),
              .record_columns = {},
              .step_columns = {},
              .seed = seed(),
              .draws = draws(),
              .appended = held.end()};
  for (std::size_t age = 0; age < marks.size(); ++age) {
    *state.continues.row(age) = std::byte{marks[age]};
    state.records += marks[age] != 0 ? 1 : stack() + 1;
  }
  for (std::size_t f = 0; f < schema().observations.size(); ++f) {
    const Field& field = schema().observations[f];
    Column& column = state.record_columns.emplace_back(state.records, field.frame_bytes());
    std::size_t record = 0;
    for (std::size_t age = 0; age < marks.size(); ++age) {
      const std::uint32_t* own = slots(row_of(ids[age]));
      // Frames that no step needs stay zero: the copy depends on the contents alone, not on the past.
      const std::size_t unused = stack() - field.stack;
      for (std::size_t t = marks[age] != 0 ? stack() : 0; t <= stack(); ++t, ++record) {
        if (t >= unused && field.frame_bytes() != 0) {
          std::memcpy(column.row(record), frame(f, own[t]), field.frame_bytes());
        }
      }
    }
  }
  for (std::size_t f = 0; f < schema().steps.size(); ++f) {
    const Cells& cells = step_field(f);
    Column& column = state.step_columns.emplace_back(state.steps, cells.bytes);
    for (std::size_t age = 0; age < marks.size() && cells.bytes != 0; ++age) {
      std::memcpy(column.row(age), cells.at(row_of(ids[age])), cells.bytes);
    }
  }
  return state;
}

Excerpt Store::copy_steps(std::uint64_t first, const StateSpace& to) const {
  const Reading held = reading();
  Excerpt copied{.first = std::clamp(first, held.begin(), held.end()), .steps = 0, .records = 0};
  const std::size_t present = std::min<std::uint64_t>(held.end() - copied.first, to.steps);
  for (; copied.steps < present; ++copied.steps) {
    const std::uint64_t id = copied.first + copied.steps;
    if (files_ != nullptr && !files_->good(id)) files_->raise_damage(id);
    const bool continues = id != held.begin() && follows(id);
    const std::size_t records = continues ? 1 : stack() + 1;
    if (records > to.records - copied.records) break;
    to.continues[copied.steps] = std::byte{continues};
    copied.records += records;
  }
  for (std::size_t f = 0; f < schema().observations.size(); ++f) {
    const std::size_t bytes = schema().observations[f].frame_bytes();
    const std::size_t unused = stack() - schema().observations[f].stack;
    std::byte* out = to.record_columns[f];
    if (out == nullptr || bytes == 0) continue;
    for (std::size_t step = 0; step < copied.steps; ++step) {
      const std::uint32_t* own = slots(row_of(copied.first + step));
      for (std::size_t t = to.continues[step] != std::byte{0} ? stack() : 0; t <= stack(); ++t) {
        if (t >= unused) std::memcpy(out, frame(f, own[t]), bytes);
        out += bytes;
      }
    }
  }
  for (std::size_t f = 0; f < schema().steps.size(); ++f) {
    const Cells& cells = step_field(f);
    std::byte* out = to.step_columns[f];
    for (std::size_t step = 0; out != nullptr && step < copied.steps && cells.bytes != 0; ++step) {
      std::memcpy(out + step * cells.bytes, cells.at(row_of(copied.first + step)), cells.bytes);
    }
  }
  return copied;
}

// Empty, at step `first`. Readers are kept out, or there are none.
void Store::start_at(std::uint64_t first) {
  pool_.reset(pool_.used(), std::vector<bool>(pool_.used(), false));
  range_->begin.store(first);
  range_->end.store(first);
  next_row_ = row_of(first);
  unused_before_ = first;
  if (files_ != nullptr) files_->restart(first);
}

void Store::load(const StateView& state) {
  if (files_ != nullptr) {
    throw Error(
        "a store in files takes no state: its contents would be gone before the new ones are there; "
        "open an empty folder and append to it");
  }
  require_writable();
  require_loadable(state);
  const std::lock_guard lock(writer_);
  const Rewriting rewriting(*range_);
  if (Priorities* kept = priorities()) {
    const std::lock_guard tree(kept->mutex());
    for (std::uint64_t id = range_->begin.load(); id < range_->end.load(); ++id) kept->remove(row_of(id));
  }
  start_at(state.appended - state.steps);
  std::size_t record = 0;
  for (std::size_t step = 0; step < state.steps; ++step) {
    const bool continues = state.continues[step] != std::byte{0};
    const std::size_t row = begin_row(continues);
    for (std::size_t t = continues ? stack() : 0; t <= stack(); ++t, ++record) {
      for (std::size_t f = 0; f < schema().observations.size(); ++f) {
        const std::size_t bytes = schema().observations[f].frame_bytes();
        if (bytes != 0) std::memcpy(frame(f, slots(row)[t]), state.record_columns[f] + record * bytes, bytes);
      }
    }
    for (std::size_t f = 0; f < schema().steps.size(); ++f) {
      const Cells& cells = step_field(f);
      if (cells.bytes != 0)
        std::memcpy(cells.at(row), state.step_columns[f] + step * cells.bytes, cells.bytes);
    }
    publish(row);
  }
  set_seed(state.seed);
  set_draws(state.draws);
}

void Store::require_loadable(const StateView& state) const {
  if (state.steps > capacity_) {
    throw Error("the state holds " + std::to_string(state.steps) + " transitions; the store's capacity is " +
                std::to_string(capacity_));
  }
  if (state.appended < state.steps) throw Error("the state holds more transitions than were ever appended");
  if (state.appended >> 40 != 0) {
    throw Error("the state says that " + std::to_string(state.appended) +
                " transitions were appended; a store counts to 2^40");
  }
  if (state.record_columns.size() != schema().observations.size() ||
      state.step_columns.size() != schema().steps.size()) {
    throw Error("the state has another number of fields than the store");
  }
  std::size_t records = 0;
  for (std::size_t step = 0; step < state.steps; ++step) {
    const bool continues = state.continues[step] != std::byte{0};
    const auto ended = [&](std::size_t field) { return state.step_columns[field][step - 1] != std::byte{0}; };
    if (continues && (step == 0 || ended(terminated_) || ended(truncated_))) {
      throw Error("the state is inconsistent: step " + std::to_string(step) + " continues nothing");
    }
    records += continues ? 1 : stack() + 1;
  }
  if (records != state.records) {
    throw Error("the state is inconsistent: its steps need " + std::to_string(records) +
                " observation records, it has " + std::to_string(state.records));
  }
  for (std::size_t f = 0; f < schema().observations.size(); ++f) {
    Field frame = schema().observations[f];
    frame.stack = 1;  // a record holds one frame
    require_finite(frame, state.record_columns[f], state.records);
  }
  for (std::size_t f = 0; f < schema().steps.size(); ++f) {
    require_finite(schema().steps[f], state.step_columns[f], state.steps);
  }
}

}  // namespace serl_fast
