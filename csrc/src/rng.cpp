#include "serl_fast/rng.h"

#include <cstddef>

namespace serl_fast {
namespace {

struct Product {
  std::uint64_t high;
  std::uint64_t low;
};

// 64 x 64 -> 128 bits from 32-bit halves, since 128-bit integers are not standard C++.
Product multiply(std::uint64_t a, std::uint64_t b) {
  const std::uint64_t a0 = a & 0xffffffffU, a1 = a >> 32;
  const std::uint64_t b0 = b & 0xffffffffU, b1 = b >> 32;
  const std::uint64_t middle = a1 * b0 + ((a0 * b0) >> 32);
  const std::uint64_t carry = a0 * b1 + (middle & 0xffffffffU);
  return {a1 * b1 + (middle >> 32) + (carry >> 32), a * b};
}

std::uint64_t random_word(std::uint64_t seed, std::uint64_t draw, std::size_t row, std::uint32_t attempt) {
  const auto words = philox4x32({static_cast<std::uint32_t>(row), attempt, static_cast<std::uint32_t>(draw),
                                 static_cast<std::uint32_t>(draw >> 32)},
                                {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
  return (std::uint64_t{words[1]} << 32) | words[0];
}

}  // namespace

std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter,
                                        std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xD2511F53U} * counter[0];
    const std::uint64_t p1 = std::uint64_t{0xCD9E8D57U} * counter[2];
    counter = {static_cast<std::uint32_t>(p1 >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(p1),
               static_cast<std::uint32_t>(p0 >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(p0)};
    key[0] += 0x9E3779B9U;
    key[1] += 0xBB67AE85U;
  }
  return counter;
}

void uniform_indices(std::uint64_t seed, std::uint64_t draw, std::uint64_t bound,
                     std::span<std::uint64_t> out) {
  const std::uint64_t threshold = (0 - bound) % bound;  // 2^64 mod bound: below it a low part is rejected
  for (std::size_t row = 0; row < out.size(); ++row) {
    for (std::uint32_t attempt = 0;; ++attempt) {
      const Product product = multiply(random_word(seed, draw, row, attempt), bound);
      if (product.low >= threshold) {
        out[row] = product.high;
        break;
      }
    }
  }
}

std::uint64_t uniform_index(std::uint64_t seed, std::uint64_t draw, std::uint64_t bound, std::size_t row,
                            std::uint32_t& attempt) {
  const std::uint64_t threshold = (0 - bound) % bound;
  for (;;) {
    const Product product = multiply(random_word(seed, draw, row, attempt++), bound);
    if (product.low >= threshold) return product.high;
  }
}

void uniform_doubles(std::uint64_t seed, std::uint64_t draw, std::span<double> out) {
  for (std::size_t row = 0; row < out.size(); ++row) {
    out[row] = static_cast<double>(random_word(seed, draw, row, 0) >> 11) * 0x1p-53;
  }
}

}  // namespace serl_fast
