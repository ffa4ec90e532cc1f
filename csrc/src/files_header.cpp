// The file `header`: two copies, each with its checksum, written in turns.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "serl_fast/crc32c.h"
#include "serl_fast/mapped_file.h"
#include "serl_fast/store_header.h"

namespace serl_fast {
namespace {

constexpr char kMagic[8] = {'S', 'E', 'R', 'L', 'R', 'P', 'L', 'Y'};
constexpr std::size_t kPrefix = 24;  // magic, format, length of the copy, distance of the second copy
constexpr std::size_t kBoot = 40;
constexpr std::size_t kLargest = std::size_t{64} << 20;
constexpr std::uint64_t kMost = std::uint64_t{1} << 40;  // of anything that is counted or measured

class Writer {
 public:
  template <typename T>
  void number(T value) {
    const auto* data = reinterpret_cast<const std::byte*>(&value);
    bytes.insert(bytes.end(), data, data + sizeof(value));
  }
  void text(const std::string& value) {
    number(static_cast<std::uint32_t>(value.size()));
    const auto* data = reinterpret_cast<const std::byte*>(value.data());
    bytes.insert(bytes.end(), data, data + value.size());
  }
  std::vector<std::byte> bytes;
};

// Reads what Writer wrote; whatever is missing or too large makes it fail.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  template <typename T>
  T number() {
    T value{};
    if (bytes_.size() < sizeof(T)) throw Error("it ends too early");
    std::memcpy(&value, bytes_.data(), sizeof(T));
    bytes_ = bytes_.subspan(sizeof(T));
    return value;
  }
  std::uint64_t count(std::uint64_t most) {
    const auto value = number<std::uint64_t>();
    if (value > most) throw Error("it holds the number " + std::to_string(value));
    return value;
  }
  std::string text() {
    const auto length = number<std::uint32_t>();
    if (bytes_.size() < length) throw Error("it ends too early");
    std::string value(reinterpret_cast<const char*>(bytes_.data()), length);
    bytes_ = bytes_.subspan(length);
    return value;
  }

 private:
  std::span<const std::byte> bytes_;
};

void put_fields(Writer& writer, const std::vector<Field>& fields) {
  writer.number(static_cast<std::uint64_t>(fields.size()));
  for (const Field& field : fields) {
    writer.text(field.name);
    writer.text(std::string(name_of(field.dtype)));
    writer.number(static_cast<std::uint64_t>(field.stack));
    writer.number(static_cast<std::uint64_t>(field.shape.size()));
    for (const std::size_t length : field.shape) writer.number(static_cast<std::uint64_t>(length));
  }
}

std::vector<Field> get_fields(Reader& reader) {
  std::vector<Field> fields(reader.count(65536));
  for (Field& field : fields) {
    field.name = reader.text();
    field.dtype = dtype_from_name(reader.text());
    field.stack = reader.count(65536);
    if (field.stack == 0) throw Error("field '" + field.name + "' is a stack of 0 frames");
    field.shape.resize(reader.count(64));
    std::uint64_t bytes = size_of(field.dtype) * field.stack;
    for (std::size_t& length : field.shape) {
      length = reader.count(kMost);
      if (length != 0 && bytes > kMost / length) throw Error("field '" + field.name + "' is too large");
      bytes *= length;
    }
  }
  return fields;
}

// From the first copy to the second one.
std::size_t distance_of(std::size_t length) { return (length + 4095) / 4096 * 4096; }

std::vector<std::byte> encode(const StoreHeader& header) {
  Writer writer;
  writer.bytes.resize(kPrefix);
  for (const std::uint64_t number :
       {header.generation, header.capacity, header.seed, header.draws, header.base, header.end,
        std::uint64_t{header.closed} | std::uint64_t{header.snapshot} << 1, std::uint64_t{header.durable}}) {
    writer.number(number);
  }
  std::string boot = header.boot;
  boot.resize(kBoot);  // so that all copies have the same length
  writer.text(boot);
  writer.text(header.note);
  writer.number(static_cast<std::uint64_t>(header.columns.size()));
  for (const auto& [name, bytes] : header.columns) {
    writer.text(name);
    writer.number(bytes);
  }
  put_fields(writer, header.schema.observations);
  put_fields(writer, header.schema.steps);
  const auto length = static_cast<std::uint32_t>(writer.bytes.size() + sizeof(std::uint32_t));
  const std::uint64_t distance = distance_of(length);
  std::memcpy(writer.bytes.data(), kMagic, sizeof(kMagic));
  std::memcpy(writer.bytes.data() + 8, &StoreHeader::kFormat, sizeof(StoreHeader::kFormat));
  std::memcpy(writer.bytes.data() + 12, &length, sizeof(length));
  std::memcpy(writer.bytes.data() + 16, &distance, sizeof(distance));
  writer.number(crc32c(writer.bytes.data(), writer.bytes.size()));
  return writer.bytes;
}

bool has_magic(std::span<const std::byte> copy) {
  return copy.size() >= kPrefix && std::memcmp(copy.data(), kMagic, sizeof(kMagic)) == 0;
}

StoreHeader decode(std::span<const std::byte> copy) {
  if (!has_magic(copy)) throw Error("it is not that of a replay store");
  Reader prefix(copy.subspan(sizeof(kMagic)));
  const auto format = prefix.number<std::uint32_t>();
  const auto length = prefix.number<std::uint32_t>();
  const bool complete = length >= kPrefix + sizeof(std::uint32_t) && length <= copy.size();
  std::uint32_t checksum = 0;
  if (complete) std::memcpy(&checksum, copy.data() + length - sizeof(checksum), sizeof(checksum));
  const bool valid = complete && checksum == crc32c(copy.data(), length - sizeof(checksum));
  if (format != StoreHeader::kFormat) {
    throw Error("it has format " + std::to_string(format) + "; this version of serl_fast reads format " +
                std::to_string(StoreHeader::kFormat));
  }
  if (!valid) throw Error("its checksum is wrong");
  Reader reader(copy.subspan(kPrefix, length - kPrefix - sizeof(checksum)));
  StoreHeader header;
  header.generation = reader.number<std::uint64_t>();
  header.capacity = reader.count(kMost);
  header.seed = reader.number<std::uint64_t>();
  header.draws = reader.number<std::uint64_t>();
  header.base = reader.count(kMost);
  header.end = reader.count(kMost);
  const auto state = reader.number<std::uint64_t>();
  header.closed = (state & 1) != 0;
  header.snapshot = (state & 2) != 0;
  header.durable = reader.number<std::uint64_t>() != 0;
  header.boot = reader.text();
  header.boot.resize(std::min(header.boot.size(), header.boot.find('\0')));
  header.note = reader.text();
  header.columns.resize(reader.count(1 << 20));
  for (auto& [name, bytes] : header.columns) {
    name = reader.text();
    bytes = reader.count(kMost);
  }
  header.schema.observations = get_fields(reader);
  header.schema.steps = get_fields(reader);
  return header;
}

std::vector<std::byte> read_whole(const std::string& path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) throw FileError(errno, path, "it cannot be opened");
  struct stat status{};
  fstat(file, &status);
  std::vector<std::byte> bytes(
      std::min(static_cast<std::size_t>(std::max<off_t>(status.st_size, 0)), kLargest));
  std::size_t done = 0;
  for (ssize_t part = 1; part > 0 && done < bytes.size(); done += static_cast<std::size_t>(part)) {
    part = read(file, bytes.data() + done, bytes.size() - done);
    if (part < 0) {
      const int error = errno;
      ::close(file);
      throw FileError(error, path, "it cannot be read");
    }
  }
  ::close(file);
  bytes.resize(done);
  return bytes;
}

}  // namespace

StoreHeader read_header(const std::string& folder) {
  const std::string path = folder + "/header";
  const std::vector<std::byte> bytes = read_whole(path);
  // Where the second copy begins says the first one, and if that is lost, the size of the file.
  std::vector<std::uint64_t> places = {0, bytes.size() / 2};
  if (bytes.size() >= kPrefix) {
    std::uint64_t distance = 0;
    std::memcpy(&distance, bytes.data() + 16, sizeof(distance));
    if (distance < bytes.size()) places.push_back(distance);
  }
  std::optional<StoreHeader> newest;
  std::string first_problem;
  bool foreign = true;
  for (const std::uint64_t place : places) {
    foreign = foreign && !has_magic(std::span(bytes).subspan(place));
    try {
      StoreHeader header = decode(std::span(bytes).subspan(place));
      if (!newest || header.generation > newest->generation) newest = std::move(header);
    } catch (const std::exception& error) {
      if (first_problem.empty()) first_problem = error.what();
    }
  }
  if (!newest && foreign)
    throw Error(folder + " is no replay store: the file header in it is not that of one");
  if (!newest) throw Error(path + ": " + first_problem);
  return *std::move(newest);
}

std::string header_damage(const std::string& folder) {
  constexpr int kAttempts = 3;  // a copy may be looked at while it is written
  std::string found;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    if (attempt > 0) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    const std::size_t distance = distance_of(encode(read_header(folder)).size());
    const std::vector<std::byte> bytes = read_whole(folder + "/header");
    found.clear();
    for (const std::size_t place : {std::size_t{0}, distance}) {
      try {
        decode(std::span(bytes).subspan(std::min(place, bytes.size())));
      } catch (const std::exception&) {
        found = "header, byte " + std::to_string(place) +
                ": this copy of the header is damaged; the other one is valid";
      }
    }
    if (found.empty()) break;
  }
  return found;
}

void write_header(const std::string& folder, StoreHeader& header) {
  const std::string path = folder + "/header";
  ++header.generation;
  const std::vector<std::byte> copy = encode(header);
  const std::size_t distance = distance_of(copy.size());
  const int file = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (file < 0) throw FileError(errno, path, "it cannot be opened");
  const auto write_at = [&](std::size_t at) {
    const ssize_t written = pwrite(file, copy.data(), copy.size(), static_cast<off_t>(at));
    if (written != static_cast<ssize_t>(copy.size())) return written < 0 ? errno : ENOSPC;
    return 0;
  };
  int error = write_at(header.generation % 2 * distance);
  if (error == 0 && header.generation == 1) {  // the first one fills both places
    error = write_at(0);
    if (error == 0 && ftruncate(file, static_cast<off_t>(2 * distance)) != 0) error = errno;
  }
  if (error == 0 && fsync(file) != 0) error = errno;
  ::close(file);
  if (error == 0) return;
  --header.generation;  // the next attempt goes to the same place: the other one holds the valid copy
  throw FileError(error, path, "it cannot be written");
}

std::string boot_id() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  std::getline(file, id);
  return id.substr(0, kBoot);
}

}  // namespace serl_fast
