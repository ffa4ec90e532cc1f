// What the machine allows: random rows copied into one block, without anything a replay store does besides.
//
// Compiled by row_gather.py when it runs: g++ -O3 -march=native -std=c++20 -shared -fPIC -pthread.

#include <algorithm>
#include <atomic>
#include <barrier>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

constexpr std::size_t kAhead =
    2048;  // bytes between the prefetch and the copy; beyond a row's end it is harmless

// Rows are multiples of 128 bytes and aligned to 32; the written lines do not pass through the caches.
void copy_streaming(const std::byte* from, std::byte* to, std::size_t bytes) {
#if defined(__AVX2__)
  for (std::size_t at = 0; at < bytes; at += 128) {
    _mm_prefetch(reinterpret_cast<const char*>(from + at + kAhead), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(from + at + kAhead + 64), _MM_HINT_T0);
    const auto* source = reinterpret_cast<const __m256i*>(from + at);
    auto* target = reinterpret_cast<__m256i*>(to + at);
    const __m256i a = _mm256_load_si256(source), b = _mm256_load_si256(source + 1);
    const __m256i c = _mm256_load_si256(source + 2), d = _mm256_load_si256(source + 3);
    _mm256_stream_si256(target, a);
    _mm256_stream_si256(target + 1, b);
    _mm256_stream_si256(target + 2, c);
    _mm256_stream_si256(target + 3, d);
  }
  _mm_sfence();
#else
  std::memcpy(to, from, bytes);
#endif
}

constexpr std::size_t kShort = 2048;  // bytes of a row up to which whole rows are prefetched
constexpr std::size_t kRowsAhead = 6;

// Where the next short row lies the processor can not guess, so it is asked for in time.
void prefetch_row(const std::byte* row, std::size_t bytes) {
  for (std::size_t at = 0; at < bytes; at += 64) __builtin_prefetch(row + at);
}

}  // namespace

extern "C" int has_avx2() {
#if defined(__AVX2__)
  return 1;
#else
  return 0;
#endif
}

// Copies `rows` rows of `source`, which begin at multiples of `stride` bytes and may overlap, to `out`,
// `passes` times; all threads finish a pass before the next begins. Threads take a few rows at a time: one
// that the system sets aside does not hold up the others' share.
extern "C" void gather(const std::byte* source, std::size_t row_bytes, std::size_t stride,
                       const std::int64_t* indices, std::size_t rows, std::byte* out, int threads,
                       int streaming, int passes) {
  constexpr std::size_t kTaken = 8;
  std::barrier together(threads);
  std::vector<std::atomic<std::size_t>> next(static_cast<std::size_t>(passes));
  const auto work = [&] {
    for (auto& cursor : next) {
      for (std::size_t begin; (begin = cursor.fetch_add(kTaken, std::memory_order_relaxed)) < rows;) {
        for (std::size_t i = begin; i < std::min(begin + kTaken, rows); ++i) {
          const auto row = [&](std::size_t k) {
            return source + static_cast<std::size_t>(indices[k]) * stride;
          };
          if (row_bytes <= kShort && i + kRowsAhead < rows) prefetch_row(row(i + kRowsAhead), row_bytes);
          const std::byte* from = row(i);
          if (streaming != 0) {
            copy_streaming(from, out + i * row_bytes, row_bytes);
          } else {
            std::memcpy(out + i * row_bytes, from, row_bytes);
          }
        }
      }
      together.arrive_and_wait();
    }
  };
  std::vector<std::jthread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(work);
  work();
}
