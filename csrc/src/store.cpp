#include "serl_fast/store.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <shared_mutex>
#include <stdexcept>
#include <string>
#include <utility>

#include "serl_fast/gather.h"
#include "serl_fast/rng.h"

namespace serl_fast {
namespace {

Schema validated(Schema schema, std::size_t capacity) {
  schema.validate();
  if (capacity == 0) throw Error("the capacity is 0; a store holds at least one transition");
  if (capacity >> 32 != 0) throw Error("the capacity is " + std::to_string(capacity) + "; at most 2^32 - 1");
  return schema;
}

void copy_frame(std::byte* to, const std::byte* from, const Field& field) {
  std::memcpy(to, from, field.frame_bytes());
}

}  // namespace

// In the worst case every step is a stretch of its own and needs its observation, its next observation and
// the older frames of its stacks.
Store::Store(Schema schema, std::size_t capacity, std::uint64_t seed)
    : schema_(validated(std::move(schema), capacity)),
      capacity_(capacity),
      terminated_(schema_.step_index("terminated")),
      truncated_(schema_.step_index("truncated")),
      records_(schema_.observations, capacity * (schema_.max_stack() + 1)),
      sequences_(capacity, sizeof(std::uint64_t)),
      seed_(seed) {
  steps_.reserve(schema_.steps.size());
  for (const Field& field : schema_.steps) steps_.emplace_back(capacity, field.row_bytes());
}

// --- appending
// -------------------------------------------------------------------------------------------------

void Store::append(std::span<const std::byte* const> columns, std::size_t rows,
                   std::span<const Continues> continues) {
  const Input input(schema_, columns, rows);
  input.validate();  // before the lock: it reads the caller's memory only
  const std::unique_lock lock(mutex_);
  const std::vector<bool> planned = plan(input, continues);
  for (std::size_t row = 0; row < rows; ++row) write(input, row, planned[row]);
}

std::vector<bool> Store::plan(const Input& input, std::span<const Continues> continues) const {
  std::vector<bool> planned(input.rows());
  for (std::size_t row = 0; row < input.rows(); ++row) {
    planned[row] = decide(input, row, row < continues.size() ? continues[row] : Continues::kDecide);
  }
  return planned;
}

bool Store::decide(const Input& input, std::size_t row, Continues wish) const {
  if (wish == Continues::kNo) return false;
  const std::string where = input.rows() > 1 ? "row " + std::to_string(row) + ": " : "";
  if (row == 0 && size_ == 0) {
    if (wish == Continues::kYes) throw Error(where + "continues is True, but the store is empty");
    return false;
  }
  const std::uint32_t last = row_of_age(size_ + capacity_ - 1);
  const auto ended = [&](std::size_t field) {
    return row == 0 ? flag(field, last) : *input.step(field, row - 1) != std::byte{0};
  };
  for (const std::size_t field : {terminated_, truncated_}) {
    if (!ended(field)) continue;
    if (wish != Continues::kYes) return false;
    throw Error(where + "continues is True, but the previous step was " + schema_.steps[field].name);
  }
  const std::size_t broken = row == 0 ? first_break(input) : input.first_break(row);
  if (broken == schema_.observations.size()) return true;
  if (wish != Continues::kYes) return false;
  const std::string& name = schema_.observations[broken].name;
  throw Error(where + "continues is True, but field '" + name + "' differs from field 'next_" + name +
              "' of the previous step; pass False where a new stretch begins");
}

// Input::first_break for row 0, whose predecessor is the newest row of the store.
std::size_t Store::first_break(const Input& input) const {
  const std::size_t count = schema_.observations.size();
  for (std::size_t f = 0; f < count; ++f) {
    const Field& field = schema_.observations[f];
    for (std::size_t t = 0; t < field.stack; ++t) {
      const std::byte* stored = records_.frame(f, records_.end() - field.stack + t);
      const std::byte* given = input.observation(f, 0) + t * field.frame_bytes();
      if (std::memcmp(stored, given, field.frame_bytes()) != 0) return f;
    }
  }
  return count;
}

void Store::write(const Input& input, std::size_t row, bool continues) {
  const std::uint32_t target = begin_row(continues);
  const std::uint64_t observation = sequence(target);
  for (std::size_t f = 0; f < schema_.observations.size(); ++f) {
    const Field& field = schema_.observations[f];
    const std::size_t bytes = field.frame_bytes();
    const std::size_t newest = field.stack - 1;
    for (std::size_t t = 0; !continues && t <= newest; ++t) {
      copy_frame(records_.frame(f, observation - newest + t), input.observation(f, row) + t * bytes, field);
    }
    copy_frame(records_.frame(f, observation + 1), input.next_observation(f, row) + newest * bytes, field);
  }
  for (std::size_t f = 0; f < schema_.steps.size(); ++f) {
    copy_frame(steps_[f].row(target), input.step(f, row), schema_.steps[f]);
  }
  end_row();
}

std::uint32_t Store::begin_row(bool continues) {
  const bool full = size_ == capacity_;
  const std::uint32_t row = row_of_age(size_);  // of a full store: the oldest, which is given up
  if (full) oldest_ = row_of_age(1);
  const bool none_kept = full ? capacity_ == 1 : size_ == 0;
  const std::uint64_t observation = continues ? records_.end() - 1 : records_.end() + older_frames();
  // The oldest step that stays needs its observation with the older frames, and nothing before them.
  records_.drop_before((none_kept ? observation : sequence(oldest_)) - older_frames());
  while (records_.end() <= observation + 1) records_.push();
  std::memcpy(sequences_.row(row), &observation, sizeof(observation));
  return row;
}

void Store::end_row() {
  size_ = std::min(size_ + 1, capacity_);
  ++appended_;
}

// --- sampling
// --------------------------------------------------------------------------------------------------

void Store::sample(std::size_t rows, float discount, std::span<std::byte* const> out) {
  require_discount(discount);
  std::vector<std::uint64_t> ages(rows);
  std::vector<std::uint32_t> positions(rows);
  const std::shared_lock lock(mutex_);
  if (size_ == 0) throw Error("the store is empty; append a transition before sampling");
  uniform_indices(seed_, draws_.fetch_add(1), size_, ages);
  for (std::size_t i = 0; i < rows; ++i) positions[i] = row_of_age(ages[i]);
  copy_out(positions, discount, out);
}

void Store::gather(std::span<const std::int64_t> ages, float discount,
                   std::span<std::byte* const> out) const {
  require_discount(discount);
  std::vector<std::uint32_t> positions(ages.size());
  const std::shared_lock lock(mutex_);
  for (std::size_t i = 0; i < ages.size(); ++i) {
    if (ages[i] < 0 || static_cast<std::uint64_t>(ages[i]) >= size_) {
      throw std::out_of_range("index " + std::to_string(ages[i]) + " is outside the " +
                              std::to_string(size_) + " transitions of the store; 0 is the oldest");
    }
    positions[i] = row_of_age(static_cast<std::uint64_t>(ages[i]));
  }
  copy_out(positions, discount, out);
}

void Store::require_discount(float discount) const {
  if (!(discount >= 0.0F && discount <= 1.0F)) {
    throw Error("the discount is " + std::to_string(discount) + "; it lies in [0, 1]");
  }
}

void Store::copy_out(std::span<const std::uint32_t> rows, float discount,
                     std::span<std::byte* const> out) const {
  const std::size_t count = schema_.observations.size();
  std::vector<std::uint64_t> sequences(rows.size());
  std::vector<std::uint32_t> slots(rows.size());
  gather_rows(sequences_, rows, reinterpret_cast<std::byte*>(sequences.data()), sizeof(std::uint64_t));

  // One pass per distance from the observation's record: -older .. 0, and 1 for the next observation. Record
  // observation + distance is frame stack - 1 + distance of the observation, and one less of the next one.
  for (std::size_t pass = 0; pass <= older_frames() + 1; ++pass) {
    const std::uint64_t back = older_frames();
    for (std::size_t i = 0; i < rows.size(); ++i) slots[i] = records_.slot(sequences[i] - back + pass);
    for (std::size_t f = 0; f < count; ++f) {
      const Field& field = schema_.observations[f];
      const std::size_t bytes = field.frame_bytes();
      const std::size_t skipped =
          older_frames() - (field.stack - 1);  // passes before this field's oldest frame
      if (pass >= skipped && pass - skipped < field.stack) {
        gather_rows(records_.column(f), slots, out[f] + (pass - skipped) * bytes, field.row_bytes());
      }
      if (pass >= skipped + 1) {
        gather_rows(records_.column(f), slots, out[count + f] + (pass - skipped - 1) * bytes,
                    field.row_bytes());
      }
    }
  }
  for (std::size_t f = 0; f < schema_.steps.size(); ++f) {
    gather_rows(steps_[f], rows, out[2 * count + f], schema_.steps[f].row_bytes());
  }
  const std::size_t masks = schema_.columns_in();
  derive_targets(out[2 * count + terminated_], rows.size(), discount, out[masks], out[masks + 1]);
}

// --- state
// -----------------------------------------------------------------------------------------------------

State Store::state() const {
  const std::shared_lock lock(mutex_);
  State state{.steps = size_,
              .records = records_.end() - records_.begin(),
              .continues = Column(size_, 1),
              .record_columns = {},
              .step_columns = {},
              .seed = seed_,
              .draws = draws_,
              .appended = appended_};
  for (std::size_t f = 0; f < schema_.observations.size(); ++f) {
    const Field& field = schema_.observations[f];
    Column& column = state.record_columns.emplace_back(state.records, field.frame_bytes());
    // Frames that no step needs stay zero: the copy depends on the contents alone, not on the past.
    for (std::size_t age = 0; age < state.steps; ++age) {
      const std::uint64_t observation = sequence(row_of_age(age));
      const bool continues = age > 0 && sequence(row_of_age(age - 1)) + 1 == observation;
      state.continues.row(age)[0] = std::byte{continues};
      const std::uint64_t first = continues ? observation + 1 : observation - (field.stack - 1);
      for (std::uint64_t s = first; s <= observation + 1; ++s) {
        copy_frame(column.row(s - records_.begin()), records_.frame(f, s), field);
      }
    }
  }
  std::vector<std::uint32_t> rows(state.steps);
  for (std::size_t age = 0; age < state.steps; ++age) rows[age] = row_of_age(age);
  for (std::size_t f = 0; f < schema_.steps.size(); ++f) {
    const std::size_t bytes = schema_.steps[f].row_bytes();
    Column& column = state.step_columns.emplace_back(state.steps, bytes);
    gather_rows(steps_[f], rows, column.data(), bytes);
  }
  return state;
}

void Store::load(const StateView& state) {
  require_loadable(state);
  const std::unique_lock lock(mutex_);
  records_.clear();
  size_ = 0;
  oldest_ = 0;
  std::size_t record = 0;
  for (std::size_t step = 0; step < state.steps; ++step) {
    const std::uint64_t before = records_.end();
    const std::uint32_t row = begin_row(state.continues[step] != std::byte{0});
    for (std::uint64_t s = before; s < records_.end(); ++s, ++record) {
      for (std::size_t f = 0; f < schema_.observations.size(); ++f) {
        const Field& field = schema_.observations[f];
        copy_frame(records_.frame(f, s), state.record_columns[f] + record * field.frame_bytes(), field);
      }
    }
    for (std::size_t f = 0; f < schema_.steps.size(); ++f) {
      const std::size_t bytes = schema_.steps[f].row_bytes();
      std::memcpy(steps_[f].row(row), state.step_columns[f] + step * bytes, bytes);
    }
    end_row();
  }
  seed_ = state.seed;
  draws_ = state.draws;
  appended_ = state.appended;
}

void Store::require_loadable(const StateView& state) const {
  if (state.steps > capacity_) {
    throw Error("the state holds " + std::to_string(state.steps) + " transitions; the store's capacity is " +
                std::to_string(capacity_));
  }
  if (state.appended < state.steps) throw Error("the state holds more transitions than were ever appended");
  if (state.record_columns.size() != schema_.observations.size() ||
      state.step_columns.size() != schema_.steps.size()) {
    throw Error("the state has another number of fields than the store");
  }
  std::size_t records = 0;
  for (std::size_t step = 0; step < state.steps; ++step) {
    const bool continues = state.continues[step] != std::byte{0};
    const auto ended = [&](std::size_t field) { return state.step_columns[field][step - 1] != std::byte{0}; };
    if (continues && (step == 0 || ended(terminated_) || ended(truncated_))) {
      throw Error("the state is inconsistent: step " + std::to_string(step) + " continues nothing");
    }
    records += continues ? 1 : older_frames() + 2;
  }
  if (records != state.records) {
    throw Error("the state is inconsistent: its steps need " + std::to_string(records) +
                " observation records, it has " + std::to_string(state.records));
  }
  for (std::size_t f = 0; f < schema_.observations.size(); ++f) {
    Field frame = schema_.observations[f];
    frame.stack = 1;  // a record holds one frame
    require_finite(frame, "", state.record_columns[f], state.records);
  }
  for (std::size_t f = 0; f < schema_.steps.size(); ++f) {
    require_finite(schema_.steps[f], "", state.step_columns[f], state.steps);
  }
}

// --- where things lie
// ------------------------------------------------------------------------------------------

std::uint32_t Store::row_of_age(std::uint64_t age) const {
  return static_cast<std::uint32_t>((oldest_ + age) % capacity_);
}

std::uint64_t Store::sequence(std::uint32_t row) const {
  std::uint64_t value;
  std::memcpy(&value, sequences_.row(row), sizeof(value));
  return value;
}

std::size_t Store::bytes_used() const {
  const std::shared_lock lock(mutex_);
  std::size_t record_bytes = sizeof(std::uint32_t);
  for (const Field& field : schema_.observations) record_bytes += field.frame_bytes();
  std::size_t step_bytes = sizeof(std::uint64_t);
  for (const Field& field : schema_.steps) step_bytes += field.row_bytes();
  return records_.slots_used() * record_bytes + size_ * step_bytes;
}

}  // namespace serl_fast
