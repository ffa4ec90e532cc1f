#include "serl_fast/gather.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "serl_fast/copy.h"
#include "serl_fast/store.h"
#include "serl_fast/worker_pool.h"

namespace serl_fast {
namespace {

constexpr std::size_t kCacheLine = 64;
// A block of rows is worked on while its cells are in the first-level cache.
constexpr std::size_t kBlockRows = 64;
constexpr std::size_t kBlockBytes = std::size_t{256} << 10;
// Batches below this are done before another thread has woken up.
constexpr std::size_t kShared = std::size_t{1} << 20;
// Cells from this size on go past the caches, if the batch is larger than what they could keep.
constexpr std::size_t kLargeCell = 4096;
constexpr std::size_t kLargeBatch = std::size_t{4} << 20;

// kBytes fixes the cell size at compile time, so that a scalar's copy is one load and one store.
template <std::size_t kBytes>
void gather(const Cells& cells, std::span<const std::uint32_t> rows, std::byte* out, std::size_t out_stride) {
  for (std::size_t i = 0; i < rows.size(); ++i) std::memcpy(out + i * out_stride, cells.at(rows[i]), kBytes);
}

// 16 <= bytes <= kSmall, without a call: whole steps of 16, the last one overlapping.
void gather_small(const Cells& cells, std::span<const std::uint32_t> rows, std::byte* out,
                  std::size_t out_stride) {
  const std::size_t bytes = cells.bytes;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const std::byte* from = cells.at(rows[i]);
    std::byte* to = out + i * out_stride;
    for (std::size_t b = 0; b + 16 <= bytes; b += 16) std::memcpy(to + b, from + b, 16);
    std::memcpy(to + bytes - 16, from + bytes - 16, 16);
  }
}

}  // namespace

void prefetch(const Cells& cells, std::uint32_t row) {
#if defined(__GNUC__)
  const std::byte* cell = cells.at(row);
  for (std::size_t b = 0; b < std::min(cells.bytes, Table::kSmall); b += kCacheLine)
    __builtin_prefetch(cell + b);
#else
  (void)cells;
  (void)row;
#endif
}

void gather_cells(const Cells& cells, std::span<const std::uint32_t> rows, std::byte* out,
                  std::size_t out_stride, bool past_caches) {
  switch (cells.bytes) {
    case 0:
      return;
    case 1:
      return gather<1>(cells, rows, out, out_stride);
    case 4:
      return gather<4>(cells, rows, out, out_stride);
    case 8:
      return gather<8>(cells, rows, out, out_stride);
    default:
      break;
  }
  if (cells.bytes >= 16 && cells.bytes <= Table::kSmall) return gather_small(cells, rows, out, out_stride);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    std::byte* to = out + i * out_stride;
    if (past_caches && cells.bytes >= kLargeCell) {
      stream_copy(to, cells.at(rows[i]), cells.bytes);
    } else {
      std::memcpy(to, cells.at(rows[i]), cells.bytes);
    }
  }
}

// One call of Store::copy: what it does with a block of rows, on whichever thread.
class Gather {
 public:
  Gather(const Store& store, const Reading& reading, std::span<const std::uint64_t> ids, const Layout& layout,
         std::span<std::byte* const> out)
      : store_(store), reading_(reading), ids_(ids), view_(layout.view), columns_(layout.columns), out_(out) {
    for (std::size_t c = 0; c < columns_.size(); ++c) {
      if (out_[c] == nullptr) continue;
      row_bytes_ += columns_[c].row_bytes();
      has_large_ = has_large_ || columns_[c].field.frame_bytes() >= kLargeCell;
    }
    past_caches_ = has_large_ && row_bytes_ * ids.size() >= kLargeBatch;
  }

  void run() const {
    const std::size_t rows = ids_.size();
    if (row_bytes_ * rows < kShared) {
      for (std::size_t first = 0; first < rows; first += kBlockRows)
        block(first, std::min(rows, first + kBlockRows));
      return;
    }
    const std::size_t by_bytes = std::max<std::size_t>(1, kBlockBytes / std::max<std::size_t>(1, row_bytes_));
    const std::size_t size = std::min(by_bytes, kBlockRows);
    WorkerPool::shared().run((rows + size - 1) / size, [&](std::size_t task) {
      block(task * size, std::min(rows, (task + 1) * size));
      if (past_caches_) stream_fence();
    });
  }

 private:
  // Rows of the step table for the steps at hand, and what the view makes of them.
  struct Block {
    std::vector<std::uint32_t> first;  // the step a row starts at
    std::vector<std::uint32_t> steps;  // all of its steps, one after the other
    std::vector<std::uint32_t> last;   // n-step: the last of them
    std::vector<std::uint32_t> slots;
    std::vector<float> rewards, masks, discounts, terminals, valid;
  };

  void block(std::size_t begin, std::size_t end) const {
    static thread_local Block scratch;
    Block& b = scratch;
    const std::size_t rows = end - begin;
    b.first.resize(rows);
    for (std::size_t i = 0; i < rows; ++i) b.first[i] = row_of(ids_[begin + i]);
    for (std::size_t i = 0; i < rows; ++i) prefetch(store_.steps_.small(), b.first[i]);
    if (view_.length > 0) {
      sequences(b, begin, rows);
    } else {
      transitions(b, begin, rows);
    }
    const Cells& records = store_.records_.small();
    if (records.bytes > 0) {
      for (std::size_t i = 0; i < rows; ++i) {
        prefetch(records, store_.slots(b.first[i])[store_.stack() - 1]);
        prefetch(records, store_.slots(b.last[i])[store_.stack()]);
      }
    }
    for (std::size_t c = 0; c < columns_.size(); ++c) {
      if (out_[c] != nullptr) column(b, columns_[c], out_[c] + begin * columns_[c].row_bytes());
    }
  }

  void column(Block& b, const Output& output, std::byte* out) const {
    using Kind = Output::Kind;
    switch (output.kind) {
      case Kind::kObservation:
        return frames(b, b.first, output, 0, out);
      case Kind::kFullObservations:
        return frames(b, b.steps, output, 0, out);
      case Kind::kNextObservation:
        return frames(b, view_.length > 0 ? b.steps : b.last, output, 1, out);
      case Kind::kStep:
        return step_column(b, output.index, out);
      case Kind::kNextActions:
        return next_actions(b, output.index, out);
      case Kind::kMasks:
        return put(b.masks, out);
      case Kind::kDiscounts:
        return put(b.discounts, out);
      case Kind::kTerminals:
        return put(b.terminals, out);
      case Kind::kValid:
        return put(b.valid, out);
      case Kind::kIds:
      case Kind::kWeights:
        return;  // the sampler's
    }
  }

  // `later`: 0 for the stack of the observation, 1 for that of the next one.
  void frames(Block& b, const std::vector<std::uint32_t>& steps, const Output& output, std::size_t later,
              std::byte* out) const {
    const Field& field = store_.schema().observations[output.index];
    const Cells& cells = store_.records_.field(output.index);
    const std::size_t oldest = store_.stack() - field.stack + later;
    b.slots.resize(steps.size());
    for (std::size_t t = 0; t < field.stack; ++t) {
      for (std::size_t i = 0; i < steps.size(); ++i) b.slots[i] = store_.slots(steps[i])[oldest + t];
      gather_cells(cells, b.slots, out + t * cells.bytes, field.row_bytes(), past_caches_);
    }
  }

  void step_column(const Block& b, std::size_t field, std::byte* out) const {
    const Cells& cells = store_.step_field(field);
    if (field == store_.rewards_ && (view_.length > 0 || view_.n_step > 1)) return put(b.rewards, out);
    const bool of_last = view_.length == 0 && (field == store_.terminated_ || field == store_.truncated_);
    gather_cells(cells, of_last ? b.last : b.steps, out, cells.bytes, past_caches_);
  }

  void next_actions(Block& b, std::size_t field, std::byte* out) const {
    const Cells& cells = store_.step_field(field);
    const std::uint32_t newest = row_of(reading_.end() - 1);
    b.slots.resize(b.steps.size());
    for (std::size_t i = 0; i < b.steps.size(); ++i) {
      const std::uint32_t row = b.steps[i];
      b.slots[i] = row == newest ? row : row + 1 == store_.rows_ ? 0 : row + 1;
    }
    gather_cells(cells, b.slots, out, cells.bytes, past_caches_);
  }

  void transitions(Block& b, std::size_t begin, std::size_t rows) const {
    b.steps = b.first;
    b.last = b.first;
    b.masks.resize(rows);
    b.discounts.resize(rows);
    if (view_.n_step > 1) b.rewards.resize(rows);
    for (std::size_t i = 0; i < rows; ++i) {
      double power = view_.discount;
      if (view_.n_step > 1) {
        std::uint64_t id = ids_[begin + i];
        double sum = reward(b.last[i]);
        for (std::size_t k = 1; k < view_.n_step && id + 1 < reading_.end(); ++k, ++id) {
          const std::uint32_t next = row_of(id + 1);
          if (!follows(next)) break;
          b.last[i] = next;
          sum += power * reward(next);
          power *= view_.discount;
        }
        b.rewards[i] = static_cast<float>(sum);
      }
      put_target(b, i, store_.flag(store_.terminated_, b.last[i]), power);
    }
  }

  void sequences(Block& b, std::size_t begin, std::size_t rows) const {
    const std::size_t length = view_.length, count = rows * length;
    for (auto* column : {&b.rewards, &b.masks, &b.discounts, &b.terminals, &b.valid}) column->resize(count);
    b.steps.resize(count);
    b.last.resize(rows);
    for (std::size_t i = 0; i < rows; ++i) sequence(b, i * length, ids_[begin + i], b.last[i]);
  }

  void sequence(Block& b, std::size_t at, std::uint64_t id, std::uint32_t& last) const {
    double sum = 0.0, power = 1.0;
    bool terminated = false;
    bool over = false;  // the episode or its stretch
    for (std::size_t k = 0; k < view_.length; ++k) {
      const bool repeat = over && view_.pad == Pad::kLast;
      b.valid[at + k] = over ? 0.0F : 1.0F;
      if (k > 0 && !repeat) ++id;
      const std::uint32_t row = row_of(id);
      b.steps[at + k] = row;
      if (!repeat) {
        sum += power * reward(row);
        power *= view_.discount;
        terminated = terminated || store_.flag(store_.terminated_, row);
      }
      const bool newest = id + 1 == reading_.end();  // its episode is over if the sequence goes on
      over = over || store_.ends_episode(row) || (newest ? k + 1 < view_.length : !follows(row_of(id + 1)));
      b.rewards[at + k] = static_cast<float>(sum);
      put_target(b, at + k, terminated, power);
      b.terminals[at + k] = over ? 1.0F : 0.0F;
      last = row;
    }
  }

  // What a TD target needs of the value after the last step: whether, and how much, it counts.
  static void put_target(Block& b, std::size_t at, bool terminated, double power) {
    b.masks[at] = terminated ? 0.0F : 1.0F;
    b.discounts[at] = static_cast<float>(power) * b.masks[at];
  }

  bool follows(std::uint32_t row) const { return store_.continues_mark(row) != std::byte{0}; }
  float reward(std::uint32_t row) const {
    float value;
    std::memcpy(&value, store_.step_field(store_.rewards_).at(row), sizeof(value));
    return value;
  }
  std::uint32_t row_of(std::uint64_t id) const { return static_cast<std::uint32_t>(store_.row_of(id)); }
  static void put(const std::vector<float>& values, std::byte* out) {
    std::memcpy(out, values.data(), values.size() * sizeof(float));
  }

  const Store& store_;
  const Reading& reading_;
  const std::span<const std::uint64_t> ids_;
  const View& view_;
  const std::vector<Output>& columns_;
  const std::span<std::byte* const> out_;
  std::size_t row_bytes_ = 0;
  bool has_large_ = false;
  bool past_caches_ = false;
};

void Store::copy(const Reading& reading, std::span<const std::uint64_t> ids, const Layout& layout,
                 std::span<std::byte* const> out) const {
  if (files_ != nullptr) require_good(reading, ids, layout.view);
  if (!ids.empty()) Gather(*this, reading, ids, layout, out).run();
}

}  // namespace serl_fast
