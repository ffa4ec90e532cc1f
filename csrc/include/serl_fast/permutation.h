// Sampling without replacement that needs no memory: the order of an epoch is computed, not stored.
#pragma once

#include <array>
#include <cstdint>

namespace serl_fast {

// A permutation of [0, bound) that (seed, epoch) choose. Any thread may call it; never blocks.
//
// A Feistel network over the numbers of b bits, 2^b the smallest power of two >= bound and b >= 6, applied
// again while the image is not below bound (cycle walking; Black and Rogaway, "Ciphers with arbitrary finite
// domains", CT-RSA 2002), on average less than twice from bound 33 on, 64 / bound times before. Networks
// of 4 bits are visibly biased even after 12 rounds. The low half `right` has b / 2 bits, rounded
// down, the high half `left` the rest: with equal halves, odd b would double the walk. Then, 4 times, with
// i = 0 .. 3 and key + half modulo 2^64:
//
//   left  ^= mix(key[2 i] + right) >> (64 - bits of left)
//   right ^= mix(key[2 i + 1] + left) >> (64 - bits of right)
//   mix(z): z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;  z = (z ^ z >> 27) * 0x94d049bb133111eb;  z ^ z >> 31
//
// mix is the one of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
// OOPSLA 2014; constants by D. Stafford). key[2 i] and key[2 i + 1] are the low and the high two words of
// philox4x32(counter = (i, 2^32 - 1, epoch low, epoch high), key = seed); uniform_indices() makes no attempt
// number 2^32 - 1, so the two share no random number. Not for secrets.
class Permutation {
 public:
  // bound from 1 to 2^32; Error otherwise.
  Permutation(std::uint64_t seed, std::uint64_t epoch, std::uint64_t bound);

  std::uint64_t bound() const { return bound_; }
  // The image of `index`; Error if it is not below bound.
  std::uint64_t operator()(std::uint64_t index) const;

 private:
  static constexpr unsigned kRounds = 8;

  std::uint64_t bound_;
  unsigned left_bits_;
  unsigned right_bits_;
  std::array<std::uint64_t, kRounds> keys_{};
};

// Permutation(seed, epoch, bound)(index), for the one who needs few images: makes the keys each time.
std::uint64_t permuted(std::uint64_t seed, std::uint64_t epoch, std::uint64_t bound, std::uint64_t index);

}  // namespace serl_fast
