// Which slots of the observation table are free.
#pragma once

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace serl_fast {

// Hands out slots, last freed first, so that the memory in use follows the number of live records and not the
// worst case that is reserved. A retired slot is free again once no reader can see the step that gave it up.
// Writer only; never allocates after construction.
class SlotPool {
 public:
  // At most `slots` slots in all, `retired` of them retired and not yet free. Throws Error beyond 32 bits.
  SlotPool(std::size_t slots, std::size_t retired);

  std::size_t available() const { return free_.size(); }  // without touching memory never used before
  std::size_t untouched() const { return slots_ - used_; }
  std::size_t used() const { return used_; }  // slots ever handed out: [0, used)
  // Needs available() + untouched() > 0.
  std::uint32_t take() {
    if (free_.empty()) {
      assert(used_ < slots_);
      return used_++;
    }
    const std::uint32_t slot = free_.back();
    free_.pop_back();
    return slot;
  }

  std::size_t retired() const { return count_; }
  bool can_retire(std::size_t slots) const { return count_ + slots <= retired_.size(); }
  // `step` was the last to use the slot. Steps do not go down. Needs can_retire(1).
  void retire(std::uint32_t slot, std::uint64_t step) {
    assert(count_ < retired_.size());
    std::size_t last = first_ + count_++;
    if (last >= retired_.size()) last -= retired_.size();
    retired_[last] = {step, slot};
  }
  // Frees what was retired by steps before `step`.
  void reclaim(std::uint64_t step);

  // Everything is free, except that `used` slots were touched and `is_taken[slot]` says which of them hold
  // a record.
  void reset(std::size_t used, const std::vector<bool>& is_taken);

 private:
  struct Retired {
    std::uint64_t step;
    std::uint32_t slot;
  };

  std::size_t slots_;
  std::uint32_t used_ = 0;
  std::vector<std::uint32_t> free_;
  std::vector<Retired> retired_;  // a ring
  std::size_t first_ = 0;
  std::size_t count_ = 0;
};

}  // namespace serl_fast
