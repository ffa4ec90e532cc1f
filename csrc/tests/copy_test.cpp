#include "serl_fast/copy.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <random>
#include <thread>
#include <vector>

#include "check.h"

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#include <unistd.h>
#endif

using serl_fast::stream_copy;
using serl_fast::stream_fence;

namespace {

std::vector<std::byte> noise(std::size_t bytes) {
  std::mt19937 random(7);
  std::vector<std::byte> out(bytes);
  for (std::byte& byte : out) byte = static_cast<std::byte>(random());
  return out;
}

// The copy is equal, and not a byte beside it is touched.
void copies_exactly(const std::vector<std::byte>& source, std::size_t from, std::size_t to,
                    std::size_t bytes) {
  constexpr std::byte kUntouched{0xA5};
  std::vector<std::byte> target(to + bytes + 192, kUntouched);
  const auto begin = target.begin() + static_cast<std::ptrdiff_t>(to);
  const auto end = begin + static_cast<std::ptrdiff_t>(bytes);
  const auto untouched = [](std::byte byte) { return byte == kUntouched; };
  stream_copy(target.data() + to, source.data() + from, bytes);
  stream_fence();
  CHECK(std::equal(begin, end, source.begin() + static_cast<std::ptrdiff_t>(from)));
  CHECK(std::all_of(target.begin(), begin, untouched));
  CHECK(std::all_of(end, target.end(), untouched));
}

void any_size_and_alignment() {
  const std::vector<std::byte> source = noise(60000);
  for (std::size_t bytes = 0; bytes < 700; ++bytes) copies_exactly(source, bytes % 67, bytes % 65, bytes);
  for (std::size_t offset = 0; offset < 65; ++offset) {
    for (const std::size_t bytes : {2047, 2048, 2049, 2175, 2176, 2177, 2303, 2304, 4096, 10001}) {
      copies_exactly(source, 0, offset, bytes);
      copies_exactly(source, offset, 64 - offset, bytes + offset);
    }
  }
  copies_exactly(source, 3, 5, 49152);
  stream_copy(nullptr, nullptr, 0);
}

// Blocks that end (or begin) where no memory is: a byte too far would be the end of this program.
void stays_inside() {
#if defined(__unix__) || defined(__APPLE__)
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t room = 4 * page;
  const auto walled = [&] {
    void* memory = mmap(nullptr, room + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    std::byte* inside = static_cast<std::byte*>(memory) + page;
    if (mprotect(inside, room, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
    return inside;
  };
  std::byte* const source = walled();
  std::byte* const target = walled();
  const std::vector<std::byte> values = noise(room);
  std::memcpy(source, values.data(), room);
  for (std::size_t bytes = room - 300; bytes <= room; ++bytes) {
    std::memset(target, 0, room);
    stream_copy(target + room - bytes, source + room - bytes, bytes);
    CHECK(std::memcmp(target + room - bytes, source + room - bytes, bytes) == 0);
    stream_copy(target, source, bytes);
    CHECK(std::memcmp(target, source, bytes) == 0);
  }
  munmap(source - page, room + 2 * page);
  munmap(target - page, room + 2 * page);
#endif
}

void others_see_it_after_the_fence() {
  const std::vector<std::byte> source = noise(50000);
  std::vector<std::byte> target(source.size());
  std::thread writer([&] {
    stream_copy(target.data(), source.data(), source.size());
    stream_fence();
  });
  writer.join();
  CHECK(target == source);
}

}  // namespace

int main() {
  any_size_and_alignment();
  stays_inside();
  others_see_it_after_the_fence();
  return serl_fast::test::summary();
}
