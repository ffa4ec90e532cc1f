#include "serl_fast/column.h"

#include <cstring>
#include <limits>
#include <new>

#if (defined(__unix__) || defined(__APPLE__)) && !defined(SERL_FAST_HEAP_COLUMNS)
#define SERL_FAST_MMAP_COLUMNS 1
#include <sys/mman.h>
#endif

namespace serl_fast {
namespace {

constexpr std::size_t kAlignment = 64;

#if defined(SERL_FAST_MMAP_COLUMNS)

std::byte* reserve(std::size_t bytes) {
  int flags = MAP_PRIVATE | MAP_ANONYMOUS;
#if defined(MAP_NORESERVE)
  flags |= MAP_NORESERVE;  // the worst case is reserved, the usual case is half of it: do not charge for it
#endif
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
  madvise(memory, bytes, MADV_HUGEPAGE);  // fewer TLB misses in random gathers; only a wish, may be refused
#endif
  return static_cast<std::byte*>(memory);
}

void release(std::byte* memory, std::size_t bytes) { munmap(memory, bytes); }

#else

std::byte* reserve(std::size_t bytes) {
  void* memory = ::operator new(bytes, std::align_val_t{kAlignment});
  std::memset(memory, 0, bytes);
  return static_cast<std::byte*>(memory);
}

void release(std::byte* memory, std::size_t) { ::operator delete(memory, std::align_val_t{kAlignment}); }

#endif

}  // namespace

Column::Column(std::size_t rows, std::size_t row_bytes) : row_bytes_(row_bytes) {
  if (row_bytes != 0 && rows > std::numeric_limits<std::size_t>::max() / 2 / row_bytes)
    throw std::bad_alloc();
  bytes_ = rows * row_bytes;
  if (bytes_ == 0) bytes_ = kAlignment;  // an empty column still has an address
  data_ = reserve(bytes_);
}

Column::~Column() {
  if (bytes_ != 0) release(data_, bytes_);
}

}  // namespace serl_fast
