// The replay store: a ring of transitions, each observation kept once.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "serl_fast/column.h"
#include "serl_fast/error.h"
#include "serl_fast/fair_mutex.h"
#include "serl_fast/field.h"
#include "serl_fast/input.h"
#include "serl_fast/record_table.h"
#include "serl_fast/state.h"

namespace serl_fast {

// Whether a step follows the one stored before it, so that its observation is that step's next observation.
enum class Continues : std::int8_t {
  kNo = 0,       // a new stretch begins; both observations are stored
  kYes = 1,      // it follows; an Error where the bytes say otherwise or the previous step ended its episode
  kDecide = -1,  // it follows if the previous step did not end its episode and the bytes are equal
};

// All methods may be called from any thread at any time. append and load exclude everything else; sample,
// gather and state run side by side; whoever comes first goes first. The getters and setters of single
// numbers never block, bytes_used apart. A call that throws has changed nothing.
class Store {
 public:
  // Reserves the memory for `capacity` steps, all of them stretches of their own in the worst case.
  // Throws Error for a schema or capacity that cannot be; std::bad_alloc.
  Store(Schema schema, std::size_t capacity, std::uint64_t seed);

  // Stores `rows` transitions given as columns in the order of Schema::columns_in, overwriting the oldest
  // once the store is full. continues[i] speaks for row i; rows beyond its end are decided by their bytes.
  // All rows are stored or, with an Error that names the field, none.
  void append(std::span<const std::byte* const> columns, std::size_t rows,
              std::span<const Continues> continues);

  // Draws `rows` live transitions, uniformly and with replacement, into columns in the order of
  // Schema::columns_out. Uses up one draw number. The rows depend on (seed, draw, size) alone.
  // Throws Error where the store is empty or `discount` is outside [0, 1].
  void sample(std::size_t rows, float discount, std::span<std::byte* const> out);

  // Copies the transitions of the given ages, 0 the oldest. Throws std::out_of_range.
  void gather(std::span<const std::int64_t> ages, float discount, std::span<std::byte* const> out) const;

  // A copy of everything that later results depend on; load() replaces everything by such a copy.
  // load throws Error where the copy does not fit the store or contradicts itself.
  State state() const;
  void load(const StateView& state);

  const Schema& schema() const { return schema_; }
  std::size_t capacity() const { return capacity_; }
  std::size_t size() const { return size_; }
  std::uint64_t appended() const { return appended_; }  // transitions ever stored
  std::uint64_t seed() const { return seed_; }
  std::uint64_t draws() const { return draws_; }  // calls of sample so far
  void set_seed(std::uint64_t seed) { seed_ = seed; }
  void set_draws(std::uint64_t draws) { draws_ = draws; }
  // Bytes of all slots that were ever used: what the contents occupy, not what is reserved.
  std::size_t bytes_used() const;

 private:
  // append: decide every row's continuity without changing anything, then write. Both under the writer's
  // lock.
  std::vector<bool> plan(const Input& input, std::span<const Continues> continues) const;
  bool decide(const Input& input, std::size_t row, Continues wish) const;
  std::size_t first_break(const Input& input) const;
  void write(const Input& input, std::size_t row, bool continues);
  // Makes room for one step and its records and returns its row; end_row makes it count.
  std::uint32_t begin_row(bool continues);
  void end_row();

  void require_discount(float discount) const;
  void require_loadable(const StateView& state) const;
  void copy_out(std::span<const std::uint32_t> rows, float discount, std::span<std::byte* const> out) const;

  std::size_t older_frames() const { return schema_.max_stack() - 1; }
  std::uint32_t row_of_age(std::uint64_t age) const;
  bool flag(std::size_t field, std::uint32_t row) const { return *steps_[field].row(row) != std::byte{0}; }
  std::uint64_t sequence(std::uint32_t row) const;

  const Schema schema_;
  const std::size_t capacity_;
  const std::size_t terminated_;  // index of the step field
  const std::size_t truncated_;

  mutable FairSharedMutex mutex_;  // guards everything below that is not atomic
  RecordTable records_;
  std::vector<Column> steps_;  // one per step field
  Column sequences_;          // per row: sequence number of the record of its observation; +1 is its next one
  std::uint32_t oldest_ = 0;  // row of age 0
  std::atomic<std::size_t> size_{0};
  std::atomic<std::uint64_t> appended_{0};
  std::atomic<std::uint64_t> seed_;
  std::atomic<std::uint64_t> draws_{0};
};

}  // namespace serl_fast
