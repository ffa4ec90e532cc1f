#include "serl_fast/permutation.h"

#include <string>

#include "serl_fast/error.h"
#include "serl_fast/rng.h"

namespace serl_fast {
namespace {

constexpr unsigned kFewestBits = 6;

std::uint64_t mix(std::uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
  return z ^ (z >> 31);
}

}  // namespace

Permutation::Permutation(std::uint64_t seed, std::uint64_t epoch, std::uint64_t bound) : bound_(bound) {
  if (bound == 0 || bound > std::uint64_t{1} << 32)
    throw Error("cannot permute " + std::to_string(bound) + " indices; 1 to 4294967296 are accepted");
  unsigned bits = kFewestBits;
  while (bound > std::uint64_t{1} << bits) ++bits;
  right_bits_ = bits / 2;
  left_bits_ = bits - right_bits_;
  for (unsigned round = 0; round < kRounds; round += 2) {
    const auto words = philox4x32(
        {round / 2, 0xffffffffU, static_cast<std::uint32_t>(epoch), static_cast<std::uint32_t>(epoch >> 32)},
        {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
    keys_[round] = (std::uint64_t{words[1]} << 32) | words[0];
    keys_[round + 1] = (std::uint64_t{words[3]} << 32) | words[2];
  }
}

std::uint64_t Permutation::operator()(std::uint64_t index) const {
  // Beyond bound the walk might go round a cycle that never comes below it.
  if (index >= bound_)
    throw Error("index " + std::to_string(index) + " is not permuted; indices below " +
                std::to_string(bound_) + " are");
  do {
    std::uint64_t left = index >> right_bits_;
    std::uint64_t right = index & ((std::uint64_t{1} << right_bits_) - 1);
    for (unsigned round = 0; round < kRounds; round += 2) {
      left ^= mix(keys_[round] + right) >> (64 - left_bits_);
      right ^= mix(keys_[round + 1] + left) >> (64 - right_bits_);
    }
    index = (left << right_bits_) | right;
  } while (index >= bound_);
  return index;
}

std::uint64_t permuted(std::uint64_t seed, std::uint64_t epoch, std::uint64_t bound, std::uint64_t index) {
  return Permutation(seed, epoch, bound)(index);
}

}  // namespace serl_fast
