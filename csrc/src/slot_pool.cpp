#include "serl_fast/slot_pool.h"

#include <limits>
#include <string>

#include "serl_fast/error.h"

namespace serl_fast {

SlotPool::SlotPool(std::size_t slots, std::size_t retired) : slots_(slots) {
  if (slots > std::numeric_limits<std::uint32_t>::max()) {
    throw Error("the capacity needs up to " + std::to_string(slots) +
                " observation records; a store can have 4294967295");
  }
  free_.reserve(slots);
  retired_.resize(retired);
}

void SlotPool::reclaim(std::uint64_t step) {
  for (; count_ > 0 && retired_[first_].step < step; --count_) {
    free_.push_back(retired_[first_].slot);
    if (++first_ == retired_.size()) first_ = 0;
  }
}

void SlotPool::reset(std::size_t used, const std::vector<bool>& is_taken) {
  used_ = static_cast<std::uint32_t>(used);
  free_.clear();
  first_ = count_ = 0;
  for (std::uint32_t slot = used_; slot-- > 0;) {
    if (!is_taken[slot]) free_.push_back(slot);
  }
}

}  // namespace serl_fast
