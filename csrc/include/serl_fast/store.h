// The replay store: a ring of transitions, each observation kept once.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "serl_fast/column.h"
#include "serl_fast/error.h"
#include "serl_fast/field.h"
#include "serl_fast/forks.h"
#include "serl_fast/input.h"
#include "serl_fast/live_range.h"
#include "serl_fast/priorities.h"
#include "serl_fast/slot_pool.h"
#include "serl_fast/state.h"
#include "serl_fast/table.h"
#include "serl_fast/view.h"

namespace serl_fast {

class StoreFiles;

// Whether a step follows the one stored before it, so that its observation is that step's next observation.
enum class Continues : std::int8_t {
  kNo = 0,       // a new stretch begins; both observations are stored
  kYes = 1,      // it follows; an Error where the bytes say otherwise or the previous step ended its episode
  kDecide = -1,  // it follows if the previous step did not end its episode and the bytes are equal
};

// What the batches of a store are drawn with.
struct Drawing {
  std::atomic<std::uint64_t> seed{0};
  std::atomic<std::uint64_t> draws{0};  // made so far
};

// A block of a store on disk that is not what was written.
struct Damage {
  std::uint64_t id;  // the step that needs it
  std::string file;
  std::uint64_t offset;  // in bytes
  std::string what;
};

// Steps are numbered as they are appended; a number (an id) never changes its meaning. Ages count from the
// oldest live step and shift with every append.
//
// A forked child has a copy of a store in memory, and what it appends stays there; where another thread was
// appending during the fork, the copy can be read only. Stores in files are shared; see files.h.
//
// Any method may be called from any thread at any time. A call that throws has changed nothing; the one
// exception is a store on disk with Sync::kEach whose disk refuses what was written:
// docs/design/0004-replay-files.md.
//   append, relabel, load     exclude one another; append does not wait for readers unless they hold on to
//                             old steps while capacity / 128 (at least 16) further ones arrive. relabel and
//                             load wait for the readers that are in and keep new ones out meanwhile.
//   Reading, copy, gather     never wait for an append; see above for relabel and load.
//   the numbers               (size, appended, seed, draws, …) never wait.
class Store {
 public:
  // Reserves the memory for `capacity` steps, all of them stretches of their own in the worst case.
  // Throws Error for a schema or capacity that cannot be; std::bad_alloc.
  Store(Schema schema, std::size_t capacity, std::uint64_t seed);
  // The same in files; what open_store() does.
  Store(Schema schema, std::size_t capacity, std::unique_ptr<StoreFiles> files);
  ~Store();
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

  // Stores `rows` transitions given as columns in the order of Schema::columns_in, overwriting the oldest
  // once the store is full. continues[i] speaks for row i; rows beyond its end are decided by their bytes.
  // All rows are stored or, with an Error that names the field, none. Readers see them one by one.
  void append(std::span<const std::byte* const> columns, std::size_t rows,
              std::span<const Continues> continues);
  // The same for one row, unless another thread is appending or it would wait for a disk: then it returns
  // false.
  bool try_append(std::span<const std::byte* const> columns, Continues continues);

  // Overwrites a step field of the live steps among `ids` with values[i]; the others are skipped. Readers
  // see all of a row's new value or none. Returns the number of rows written. Throws Error for a value that
  // is not finite, or a field that says where episodes end (terminated, truncated).
  std::size_t relabel(std::size_t step_field, std::span<const std::int64_t> ids, const std::byte* values);

  // --- reading ---------------------------------------------------------------------------------------------
  // Holds the live steps in place; see live_range.h. Keep it short: not across a wait.
  Reading reading() const {
    settle_after_fork();
    return Reading(*range_, capacity_, files_.get());
  }
  // Copies the rows that start at the steps `ids`, which are live in `reading`, into the columns of
  // `layout`. A null column is left out, and so are ids and weights, which samplers fill in.
  void copy(const Reading& reading, std::span<const std::uint64_t> ids, const Layout& layout,
            std::span<std::byte* const> out) const;
  // The same for ages, or for ids that need not be live. Throws std::out_of_range where one is not there.
  void gather(std::span<const std::int64_t> ages, const Layout& layout,
              std::span<std::byte* const> out) const;
  void gather_ids(std::span<const std::int64_t> ids, const Layout& layout,
                  std::span<std::byte* const> out) const;
  // For every live step, oldest first, whether it continues the one before. The oldest never does.
  std::vector<std::uint8_t> continues(const Reading& reading) const;
  // The ages at which episodes (or stretches) begin: the oldest step, and every step after a terminated or
  // truncated one or one that it does not continue.
  std::vector<std::int64_t> episode_starts(const Reading& reading) const;

  // A copy of everything that later results depend on; load() replaces everything by such a copy.
  // load throws Error where the copy does not fit the store or contradicts itself.
  State state() const;
  void load(const StateView& state);
  // For a copy of the store that is kept up to date elsewhere: the live steps from `first` on, oldest first,
  // as many as fit, in the form of a State. A step continues the one before it also where that one comes
  // before `first`: the caller has it, and its next observation. Where `first` is no longer live, or is the
  // oldest step, the oldest comes first and continues nothing. Frames that no step needs are left as they
  // are. Throws Error for a damaged step.
  Excerpt copy_steps(std::uint64_t first, const StateSpace& to) const;

  // --- in files (see files.h); in memory nothing is ever damaged
  // ---------------------------------------------
  StoreFiles* files() const { return files_.get(); }
  // Whether a row that starts at a live step can be given out whole. Reads what was not read before.
  bool is_good(const Reading& reading, std::uint64_t id, const View& view) const;
  // The same for many at once, without an answer: is_good() is then quick.
  void examine(const Reading& reading, std::span<const std::uint64_t> ids, const View& view) const;
  // Whether damaged steps are to be passed over rather than reported.
  bool skips_damaged() const;
  // What is wrong with the live steps among [first, last).
  std::vector<Damage> verify(std::uint64_t first, std::uint64_t last) const;
  // Force everything to the disk; and, after which nothing can be appended, let another process write.
  void flush();
  void close();
  // Replaces everything by the steps of another store of the same schema and at least this capacity. Damaged
  // ones are left out or an Error, as that store was opened; its appends go on meanwhile. Nobody reads this
  // one.
  void copy_from(const Store& other);

  // --- priorities ------------------------------------------------------------------------------------------
  // Starts to keep a priority for every step; see priorities.h. Once. Throws Error for exponents out of
  // range.
  void prioritize(const PriorityOptions& options);
  // errors[i] >= 0, finite, becomes the priority of step ids[i]; steps no longer live are skipped. Returns
  // how many were set.
  std::size_t update_priorities(std::span<const std::int64_t> ids, std::span<const float> errors);
  Priorities* priorities() const {
    return abandoned_ ? nullptr : priorities_.load(std::memory_order_acquire);
  }
  std::size_t row_of(std::uint64_t id) const { return static_cast<std::size_t>(id % rows_); }
  std::uint64_t id_of(std::size_t row, std::uint64_t end) const;  // the newest id below `end` in that row

  const Schema& schema() const { return form_.schema; }
  std::size_t capacity() const { return capacity_; }
  std::size_t size() const {
    const auto [first, end] = range_->live(capacity_);
    return static_cast<std::size_t>(end - first);
  }
  std::uint64_t first_id() const { return range_->live(capacity_).first; }
  std::uint64_t appended() const { return range_->end.load(); }  // transitions ever stored
  std::uint64_t seed() const { return drawing_->seed; }
  std::uint64_t draws() const { return drawing_->draws; }  // draws made so far
  std::uint64_t next_draw() { return drawing_->draws.fetch_add(1); }
  void set_seed(std::uint64_t seed) { drawing_->seed = seed; }
  void set_draws(std::uint64_t draws) { drawing_->draws = draws; }
  // Bytes of all rows and slots that were ever used: what the contents occupy, not what is reserved.
  std::size_t bytes_used() const;

 private:
  friend class Gather;  // what copy() does, in gather.cpp

  // In a forked child of a process with a store in memory: lets go of what threads of the parent held.
  void settle_after_fork() const {
    if (forks_.load(std::memory_order_acquire) != forks()) after_fork();
  }
  void after_fork() const;
  // Throws Error where this process may not change the store.
  void require_writable() const;
  // append: decide every row's continuity without changing anything, then write. Under the writer's lock.
  bool decide(const Input& input, std::size_t row, Continues wish) const;
  // What keeps a row from continuing the step before it.
  enum class Obstacle : std::uint8_t {
    kNone,
    kUnwanted,
    kEmpty,
    kDamaged,
    kTerminated,
    kTruncated,
    kDifferent
  };
  Obstacle obstacle_to(const Input& input, std::size_t row) const;
  bool is_next_of_before(const Input& input, std::size_t row, std::size_t observation) const;
  [[noreturn]] void refuse_to_continue(Obstacle obstacle, const Input& input, std::size_t row) const;
  void append_locked(const Input& input, std::span<const Continues> continues);
  void write(const Input& input, std::size_t row, bool continues);
  // In files: makes room for steps of which `planned` says whether they continue.
  void reserve(const std::vector<bool>& planned);
  // Fills `row`'s slots and returns it; publish() makes the step count.
  std::size_t begin_row(bool continues);
  void publish(std::size_t row);
  void give_up_oldest(std::uint64_t oldest, std::size_t row);
  void give_up_unlinked(std::uint64_t oldest);
  // Nobody needs the steps before this one any more.
  std::uint64_t unused_before();
  std::vector<bool> changeable(std::span<const std::int64_t> ids) const;
  std::uint32_t take_slot();
  void start_at(std::uint64_t first);
  std::vector<std::uint64_t> whole(const Reading& reading) const;
  // False for a damaged step where those are skipped; elsewhere it raises.
  bool require_good(std::uint64_t id) const;
  void require_good(const Reading& reading, std::span<const std::uint64_t> ids, const View& view) const;
  // The first step that a row which starts at `id` needs and that is damaged.
  std::optional<std::uint64_t> first_damaged(const Reading& reading, std::uint64_t id,
                                             const View& view) const;
  bool follows(std::uint64_t id) const;  // whether a step continues the one before, which is live
  // A step as plain bytes, behind those that are there; and back.
  void pack(std::size_t row, bool continues, std::vector<std::byte>& bytes) const;
  const std::byte* unpack(std::size_t row, bool continues, const std::byte* bytes);
  void gather_from(const Reading& held, std::span<const std::int64_t> numbers, bool are_ids,
                   const Layout& layout, std::span<std::byte* const> out) const;
  void require_loadable(const StateView& state) const;

  // The row of the step that comes `steps` < rows_ after the one in `row`. An append would feel the division
  // of row_of().
  std::size_t row_after(std::size_t row, std::size_t steps) const {
    const std::size_t sum = row + steps;
    return sum < rows_ ? sum : sum - rows_;
  }
  std::size_t stack() const { return stack_; }
  std::uint32_t* slots(std::size_t row) const {
    return reinterpret_cast<std::uint32_t*>(steps_.field(kSlots).at(row));
  }
  std::byte& continues_mark(std::size_t row) const { return *steps_.field(kContinues).at(row); }
  std::byte* frame(std::size_t field, std::uint32_t slot) const { return records_.field(field).at(slot); }
  const Cells& step_field(std::size_t field) const { return steps_.field(kOwn + field); }
  bool flag(std::size_t field, std::size_t row) const { return *step_field(field).at(row) != std::byte{0}; }
  bool ends_episode(std::size_t row) const { return flag(terminated_, row) || flag(truncated_, row); }

  // Fields of the step table before the schema's own: the slots of the max_stack records of the observation,
  // oldest first, and of the next observation; and the continuity mark.
  static constexpr std::size_t kSlots = 0;
  static constexpr std::size_t kContinues = 1;
  static constexpr std::size_t kOwn = 2;

  const InputForm form_;  // the schema
  const std::size_t stack_;
  const std::size_t capacity_;
  const std::size_t spare_;    // rows that readers may hold on to while the writer goes on
  const std::size_t rows_;     // capacity_ + spare_; step id lies in row id % rows_
  const std::size_t rewards_;  // index of the step field
  const std::size_t terminated_;
  const std::size_t truncated_;

  const std::unique_ptr<StoreFiles> files_;  // null: in memory
  Table records_;
  Table steps_;
  const std::unique_ptr<LiveRange> own_range_;  // in memory
  Drawing own_drawing_;
  LiveRange* const range_;
  Drawing* const drawing_;

  mutable std::atomic<std::uint32_t> forks_{forks()};  // when the store was last known to be whole
  mutable std::atomic<bool> abandoned_{false};  // a thread that was changing the store did not come along

  mutable std::mutex writer_;  // guards what follows
  SlotPool pool_;
  std::size_t next_row_ = 0;                // of the step that comes next
  std::atomic<std::size_t> slots_used_{0};  // pool_.used(), for everybody
  std::uint64_t unused_before_ = 0;         // as of the last look
  std::uint64_t opened_at_ = 0;     // in files: what came before may still be read by other processes, until
  bool old_readers_left_ = false;   // they have left
  std::size_t steps_reserved_ = 0;  // in files: rows and slots that there is room for
  std::size_t slots_reserved_ = 0;

  std::unique_ptr<Priorities> own_priorities_;
  std::atomic<Priorities*> priorities_{nullptr};
};

}  // namespace serl_fast
