#include "serl_fast/copy.h"

#include <cstring>

// The sanitizers do not see non-temporal stores, so they get the plain copy, which they check.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SERL_FAST_PLAIN_COPY 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define SERL_FAST_PLAIN_COPY 1
#endif
#endif

#if defined(__GNUC__) && defined(__x86_64__) && !defined(SERL_FAST_PLAIN_COPY)
#define SERL_FAST_AVX2_COPY 1
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#endif

namespace serl_fast {

#if defined(SERL_FAST_AVX2_COPY)

namespace {

constexpr std::size_t kCacheLine = 64;
constexpr std::size_t kBlock = 2 * kCacheLine;
constexpr std::size_t kAhead = 2048;  // bytes between the prefetch of the source and its copy
constexpr std::size_t kWorthwhile =
    2048;  // below it the plain copy is faster where the target is not aligned

[[gnu::target("avx2"), gnu::always_inline]] inline void copy_block(std::byte* to, const std::byte* from) {
  const auto* source = reinterpret_cast<const __m256i*>(from);
  auto* target = reinterpret_cast<__m256i*>(to);
  const __m256i a = _mm256_loadu_si256(source);
  const __m256i b = _mm256_loadu_si256(source + 1);
  const __m256i c = _mm256_loadu_si256(source + 2);
  const __m256i d = _mm256_loadu_si256(source + 3);
  _mm256_stream_si256(target, a);
  _mm256_stream_si256(target + 1, b);
  _mm256_stream_si256(target + 2, c);
  _mm256_stream_si256(target + 3, d);
}

[[gnu::target("avx2")]] void copy_avx2(std::byte* to, const std::byte* from, std::size_t bytes) {
  // Whole lines of the target: a line that is written in part is read from memory first.
  const std::size_t misaligned = reinterpret_cast<std::uintptr_t>(to) % kCacheLine;
  const std::size_t head = std::min(bytes, (kCacheLine - misaligned) % kCacheLine);
  std::memcpy(to, from, head);
  std::size_t at = head;
  for (; bytes - at >= kAhead + kBlock; at += kBlock) {
    __builtin_prefetch(from + at + kAhead);
    __builtin_prefetch(from + at + kAhead + kCacheLine);
    copy_block(to + at, from + at);
  }
  for (; bytes - at >= kBlock; at += kBlock) copy_block(to + at, from + at);
  std::memcpy(to + at, from + at, bytes - at);
}

bool has_avx2() {
  static const bool has = [] {
    __builtin_cpu_init();  // the first call may come before the constructors have run
    return __builtin_cpu_supports("avx2") != 0;
  }();
  return has;
}

}  // namespace

void stream_copy(std::byte* to, const std::byte* from, std::size_t bytes) {
  if (bytes >= kWorthwhile && has_avx2()) {
    copy_avx2(to, from, bytes);
  } else if (bytes != 0) {
    std::memcpy(to, from, bytes);
  }
}

void stream_fence() { _mm_sfence(); }

#else

void stream_copy(std::byte* to, const std::byte* from, std::size_t bytes) {
  if (bytes != 0) std::memcpy(to, from, bytes);
}

void stream_fence() {}

#endif

}  // namespace serl_fast
