#include "block_pool.h"

#include <algorithm>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <utility>

#include "serl_fast/column.h"

namespace serl_fast::bindings {
namespace {

class BlockPool {
 public:
  Column take(std::size_t bytes) {
    {
      const std::lock_guard lock(mutex_);
      const auto has_size = [&](const Column& block) { return block.row_bytes() == bytes; };
      // The newest one: what is left of it in the caches is worth something.
      const auto found = std::find_if(kept_.rbegin(), kept_.rend(), has_size);
      if (found != kept_.rend()) {
        Column block = std::move(*found);
        kept_.erase(std::next(found).base());
        kept_bytes_ -= bytes;
        return block;
      }
    }
    return Column(1, bytes);
  }

  void give(Column block) {
    const std::lock_guard lock(mutex_);
    kept_bytes_ += block.row_bytes();
    kept_.push_back(std::move(block));
    while (kept_bytes_ > kKeptBytes) {
      kept_bytes_ -= kept_.front().row_bytes();
      kept_.pop_front();
    }
  }

 private:
  std::mutex mutex_;
  std::deque<Column> kept_;
  std::size_t kept_bytes_ = 0;
};

// Never destroyed: arrays may outlive everything else at the end of the process.
BlockPool& pool() {
  static auto* const shared = new BlockPool;
  return *shared;
}

}  // namespace

py::array_t<std::uint8_t> make_block(std::size_t bytes) {
  auto block = std::make_unique<Column>(pool().take(bytes));
  std::byte* data = block->data();
  const py::capsule owner(block.get(), [](void* memory) {
    const std::unique_ptr<Column> dying(static_cast<Column*>(memory));
    pool().give(std::move(*dying));
  });
  (void)block.release();
  return py::array_t<std::uint8_t>(static_cast<py::ssize_t>(bytes), reinterpret_cast<std::uint8_t*>(data),
                                   owner);
}

}  // namespace serl_fast::bindings
