#include "serl_fast/crc32c.h"

#include <array>
#include <cstring>

#if defined(__GNUC__) && defined(__x86_64__)
#define SERL_FAST_SSE42_CRC 1
#include <nmmintrin.h>
#endif

namespace serl_fast {
namespace {

// Bit 31 - k of a word is the coefficient of x^k: the order in which the bits of a message come.
constexpr std::uint32_t kPolynomial = 0x82F63B78U;  // 0x1EDC6F41 reflected

constexpr std::uint32_t times_x(std::uint32_t a) { return (a >> 1) ^ ((a & 1U) != 0 ? kPolynomial : 0U); }

// slices[k][b]: what byte b with k bytes of zeros behind it adds to the checksum.
constexpr auto make_slices() {
  std::array<std::array<std::uint32_t, 256>, 8> slices{};
  for (std::uint32_t b = 0; b < 256; ++b) {
    std::uint32_t value = b;
    for (int bit = 0; bit < 8; ++bit) value = times_x(value);
    slices[0][b] = value;
  }
  for (std::size_t k = 1; k < slices.size(); ++k) {
    for (std::size_t b = 0; b < 256; ++b) {
      const std::uint32_t value = slices[k - 1][b];
      slices[k][b] = (value >> 8) ^ slices[0][value & 0xffU];
    }
  }
  return slices;
}

constexpr auto kSlices = make_slices();

constexpr std::uint32_t after_byte(std::uint32_t state, std::byte byte) {
  return (state >> 8) ^ kSlices[0][(state ^ std::to_integer<std::uint32_t>(byte)) & 0xffU];
}

// The first byte lowest on every machine; compilers make one load of it.
std::uint32_t load_word(const std::byte* data) {
  return std::to_integer<std::uint32_t>(data[0]) | std::to_integer<std::uint32_t>(data[1]) << 8 |
         std::to_integer<std::uint32_t>(data[2]) << 16 | std::to_integer<std::uint32_t>(data[3]) << 24;
}

#if defined(SERL_FAST_SSE42_CRC)

constexpr std::uint32_t multiply(std::uint32_t a, std::uint32_t b) {
  std::uint32_t product = 0;
  for (std::uint32_t bit = 0x80000000U; bit != 0; bit >>= 1) {
    if ((a & bit) != 0) product ^= b;
    b = times_x(b);
  }
  return product;
}

// The instruction has a latency of three cycles and starts one every cycle, so three streams keep it busy.
// They are kBytes long each; afterwards the checksum of one is moved behind the next, which multiplies it by
// x^(8 kBytes). That is linear, hence a sum of table entries, one for every byte of the checksum.
template <std::size_t kBytes>
struct Shift {
  static_assert(kBytes % 8 == 0);

  static constexpr auto make() {
    std::uint32_t factor = 0x80000000U;  // 1
    std::uint32_t square = 0x00800000U;  // x^8
    for (std::size_t n = kBytes; n != 0; n >>= 1) {
      if ((n & 1U) != 0) factor = multiply(factor, square);
      square = multiply(square, square);
    }
    std::array<std::array<std::uint32_t, 256>, 4> table{};
    for (std::uint32_t k = 0; k < 4; ++k) {
      for (std::uint32_t bit = 0; bit < 8; ++bit) {
        const std::uint32_t moved = multiply(factor, std::uint32_t{1} << (8 * k + bit));
        for (std::uint32_t b = 0; b < 256; ++b) {
          if ((b >> bit & 1U) != 0) table[k][b] ^= moved;
        }
      }
    }
    return table;
  }
  static constexpr auto kTable = make();

  static std::uint32_t apply(std::uint32_t state) {
    return kTable[0][state & 0xffU] ^ kTable[1][state >> 8 & 0xffU] ^ kTable[2][state >> 16 & 0xffU] ^
           kTable[3][state >> 24];
  }
};

std::uint64_t load_double_word(const std::byte* data) {
  std::uint64_t value;
  std::memcpy(&value, data, sizeof(value));
  return value;
}

// As many triples of streams of kBytes as there are; moves `data` and `bytes` on.
template <std::size_t kBytes>
[[gnu::target("sse4.2")]] std::uint32_t three_streams(std::uint32_t state, const std::byte*& data,
                                                      std::size_t& bytes) {
  for (; bytes >= 3 * kBytes; data += 3 * kBytes, bytes -= 3 * kBytes) {
    std::uint64_t a = state, b = 0, c = 0;
    for (const std::byte* at = data; at != data + kBytes; at += 8) {
      a = _mm_crc32_u64(a, load_double_word(at));
      b = _mm_crc32_u64(b, load_double_word(at + kBytes));
      c = _mm_crc32_u64(c, load_double_word(at + 2 * kBytes));
    }
    const std::uint32_t ab =
        Shift<kBytes>::apply(static_cast<std::uint32_t>(a)) ^ static_cast<std::uint32_t>(b);
    state = Shift<kBytes>::apply(ab) ^ static_cast<std::uint32_t>(c);
  }
  return state;
}

[[gnu::target("sse4.2")]] std::uint32_t crc32c_sse42(const std::byte* data, std::size_t bytes,
                                                     std::uint32_t previous) {
  std::uint32_t state = three_streams<4096>(~previous, data, bytes);
  state = three_streams<256>(state, data, bytes);
  std::uint64_t wide = state;
  for (; bytes >= 8; data += 8, bytes -= 8) wide = _mm_crc32_u64(wide, load_double_word(data));
  state = static_cast<std::uint32_t>(wide);
  for (; bytes != 0; ++data, --bytes) state = _mm_crc32_u8(state, std::to_integer<std::uint8_t>(*data));
  return ~state;
}

bool has_sse42() {
  static const bool has = [] {
    __builtin_cpu_init();  // the first call may come before the constructors have run
    return __builtin_cpu_supports("sse4.2") != 0;
  }();
  return has;
}

#endif

}  // namespace

std::uint32_t crc32c(const std::byte* data, std::size_t bytes, std::uint32_t previous) {
#if defined(SERL_FAST_SSE42_CRC)
  if (has_sse42()) return crc32c_sse42(data, bytes, previous);
#endif
  return crc32c_portable(data, bytes, previous);
}

std::uint32_t crc32c_portable(const std::byte* data, std::size_t bytes, std::uint32_t previous) {
  std::uint32_t state = ~previous;
  for (; bytes >= 8; data += 8, bytes -= 8) {
    const std::uint32_t low = state ^ load_word(data);
    const std::uint32_t high = load_word(data + 4);
    state = kSlices[7][low & 0xffU] ^ kSlices[6][low >> 8 & 0xffU] ^ kSlices[5][low >> 16 & 0xffU] ^
            kSlices[4][low >> 24] ^ kSlices[3][high & 0xffU] ^ kSlices[2][high >> 8 & 0xffU] ^
            kSlices[1][high >> 16 & 0xffU] ^ kSlices[0][high >> 24];
  }
  for (; bytes != 0; ++data, --bytes) state = after_byte(state, *data);
  return ~state;
}

}  // namespace serl_fast
