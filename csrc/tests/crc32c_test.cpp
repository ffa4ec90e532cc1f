#include "serl_fast/crc32c.h"

#include <algorithm>
#include <random>
#include <string_view>
#include <vector>

#include "check.h"

using serl_fast::crc32c;
using serl_fast::crc32c_portable;

namespace {

std::vector<std::byte> noise(std::size_t bytes) {
  std::mt19937 random(11);
  std::vector<std::byte> out(bytes);
  for (std::byte& byte : out) byte = static_cast<std::byte>(random());
  return out;
}

// From the definition: one bit at a time.
std::uint32_t by_bits(const std::byte* data, std::size_t bytes) {
  std::uint32_t state = 0xffffffffU;
  for (std::size_t i = 0; i < bytes; ++i) {
    state ^= std::to_integer<std::uint32_t>(data[i]);
    for (int bit = 0; bit < 8; ++bit) state = (state >> 1) ^ ((state & 1U) != 0 ? 0x82F63B78U : 0U);
  }
  return ~state;
}

void is(std::uint32_t expected, const std::vector<std::byte>& data) {
  CHECK(crc32c(data.data(), data.size()) == expected);
  CHECK(crc32c_portable(data.data(), data.size()) == expected);
}

// RFC 3720, appendix B.4, and the check value of the catalogues.
void known_answers() {
  std::vector<std::byte> data(32);
  is(0x8A9136AAU, data);
  std::fill(data.begin(), data.end(), std::byte{0xff});
  is(0x62A8AB43U, data);
  for (std::size_t i = 0; i < 32; ++i) data[i] = static_cast<std::byte>(i);
  is(0x46DD794EU, data);
  std::reverse(data.begin(), data.end());
  is(0x113FDB5CU, data);
  std::vector<std::byte> digits;
  for (const char digit : std::string_view("123456789")) digits.push_back(static_cast<std::byte>(digit));
  is(0xE3069283U, digits);
  is(0, {});
}

// Every remainder of the blocks that the implementations work in, at every alignment.
void any_size_and_alignment() {
  const std::vector<std::byte> data = noise(50000);
  const auto equal = [&](std::size_t offset, std::size_t bytes) {
    const std::uint32_t expected = by_bits(data.data() + offset, bytes);
    CHECK(crc32c(data.data() + offset, bytes) == expected);
    CHECK(crc32c_portable(data.data() + offset, bytes) == expected);
  };
  for (std::size_t bytes = 0; bytes < 2400; ++bytes) equal(bytes % 9, bytes);
  for (const std::size_t bytes : {12287, 12288, 12289, 13055, 13056, 13057, 24576, 49152}) {
    for (std::size_t offset = 0; offset < 8; ++offset) equal(offset, bytes);
  }
}

void parts_make_the_whole() {
  const std::vector<std::byte> data = noise(14000);
  const std::uint32_t whole = crc32c(data.data(), data.size());
  for (std::size_t cut = 0; cut <= data.size(); cut += 7) {
    const std::byte* const rest = data.data() + cut;
    CHECK(crc32c(rest, data.size() - cut, crc32c(data.data(), cut)) == whole);
    CHECK(crc32c_portable(rest, data.size() - cut, crc32c_portable(data.data(), cut)) == whole);
  }
}

void one_bit_is_noticed() {
  std::vector<std::byte> data = noise(49152);
  const std::uint32_t whole = crc32c(data.data(), data.size());
  for (std::size_t i = 0; i < data.size(); i += 97) {
    data[i] ^= std::byte{0x10};
    CHECK(crc32c(data.data(), data.size()) != whole);
    data[i] ^= std::byte{0x10};
  }
}

}  // namespace

int main() {
  known_answers();
  any_size_and_alignment();
  parts_make_the_whole();
  one_bit_is_noticed();
  return serl_fast::test::summary();
}
