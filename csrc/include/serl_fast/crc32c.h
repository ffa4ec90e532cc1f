// The checksum of what is written to files.
#pragma once

#include <cstddef>
#include <cstdint>

namespace serl_fast {

// CRC-32C (Castagnoli, polynomial 0x1EDC6F41 reflected), the checksum of iSCSI and ext4, with the
// processor's instruction where there is one. A block in parts: with `previous` the checksum of a,
// crc32c(b, ..., previous) is the checksum of a followed by b; 0 is the checksum of nothing.
std::uint32_t crc32c(const std::byte* data, std::size_t bytes, std::uint32_t previous = 0);

// The same from tables alone, for any processor. crc32c() uses it where it must; tests compare the two.
std::uint32_t crc32c_portable(const std::byte* data, std::size_t bytes, std::uint32_t previous = 0);

}  // namespace serl_fast
