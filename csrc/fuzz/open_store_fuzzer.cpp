// Opens, checks, samples and goes on with stores whose files hold anything: no crash, no foreign memory.
//
// An input is a byte of flags and patches of the files of a small good store: which file, how, where, how
// many bytes, the bytes. With kRepair the checksums are made right again, so that what they protect is looked
// at too.
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "../src/files_redo.h"
#include "../tests/rows.h"
#include "serl_fast/crc32c.h"
#include "serl_fast/files.h"
#include "serl_fast/sampler.h"
#include "serl_fast/store_files.h"

using namespace serl_fast;
using namespace serl_fast::test;

namespace {

namespace fs = std::filesystem;
using Files = std::map<std::string, std::string>;

enum Flags : std::uint8_t { kWrite = 1, kSkip = 2, kRepair = 4, kStacked = 8, kSequences = 16, kVerify = 32 };

// A header that asks for more is refused here, not by running out of memory.
constexpr std::uint64_t kMostCapacity = 10000;

const std::string& folder() {
  static const std::string path = [] {
    std::string name = (fs::exists("/dev/shm") ? fs::path("/dev/shm") : fs::temp_directory_path()).string() +
                       "/open_store_fuzzer_XXXXXX";
    if (mkdtemp(name.data()) == nullptr) std::abort();
    static std::string kept = name;
    std::atexit([] { fs::remove_all(kept); });
    return name;
  }();
  return path;
}

Rows step(int time, std::size_t stack) { return one(time, time - time % 7, stack, false, time % 7 == 6); }

Files read_files(const std::string& path) {
  Files files;
  for (const auto& entry : fs::directory_iterator(path)) {
    std::ifstream file(entry.path(), std::ios::binary);
    files[entry.path().filename()] = {std::istreambuf_iterator<char>(file), {}};
  }
  return files;
}

Files good_files(std::size_t stack) {
  const std::string path = folder() + "/good";
  fs::remove_all(path);
  const Schema schema = make_schema(stack);
  const auto store = open_store(path, &schema, 20, {});
  for (int time = 0; time < 45; ++time) append(*store, step(time, stack));
  const std::int64_t id = 30;
  const float value = 3;
  store->relabel(1, std::span(&id, 1), reinterpret_cast<const std::byte*>(&value));
  store->close();
  return read_files(path);
}

void patch(Files& files, const std::uint8_t* data, std::size_t size) {
  while (size >= 5) {
    auto file = std::next(files.begin(), data[0] % static_cast<int>(files.size()));
    std::string& bytes = file->second;
    const std::size_t offset = (data[2] | data[3] << 8) % (bytes.size() + 1);
    const std::size_t count = std::min<std::size_t>({data[4], size - 5});
    const auto* from = reinterpret_cast<const char*>(data + 5);
    switch (data[1] % 4) {
      case 0:
        bytes.replace(offset, std::min(count, bytes.size() - offset), from, count);
        break;
      case 1:
        bytes.resize(offset);
        break;
      case 2:
        for (std::size_t i = 0; i < count && offset + i < bytes.size(); ++i) bytes[offset + i] ^= from[i];
        break;
      default:
        if (data[4] == 255) files.erase(file);
        break;
    }
    if (files.empty()) return;
    data += 5 + count;
    size -= 5 + count;
  }
}

template <typename T>
T load(const std::string& bytes, std::size_t at) {
  T value{};
  std::memcpy(static_cast<void*>(&value), bytes.data() + at, sizeof(T));
  return value;
}

std::uint32_t crc(const std::string& bytes, std::size_t at, std::size_t count, std::uint32_t previous = 0) {
  return crc32c(reinterpret_cast<const std::byte*>(bytes.data()) + at, count, previous);
}

void repair_header(std::string& header) {
  for (const std::size_t place : {std::size_t{0}, header.size() / 2}) {
    if (header.size() < place + 16) continue;
    const auto length = load<std::uint32_t>(header, place + 12);
    if (length < 28 || length > header.size() - place) continue;
    const std::uint32_t own = crc(header, place, length - 4);
    std::memcpy(header.data() + place + length - 4, &own, 4);
  }
}

// The layout of make_schema(stack): slots, actions, rewards, mark, terminated, truncated; 32 bytes a record.
void repair(Files& files, std::size_t stack) {
  repair_header(files["header"]);
  std::string &journal = files["journal"], &sums = files["checksums"], &redo = files["redo"];
  const std::string &steps = files["steps.0"], &records = files["records.0"];
  for (std::size_t slot = 0; (slot + 1) * 4 <= sums.size() && (slot + 1) * 32 <= records.size(); ++slot) {
    const std::uint32_t sum = crc(records, slot * 32, 32);
    std::memcpy(sums.data() + slot * 4, &sum, 4);
  }
  const std::size_t links = 4 * (stack + 1), stride = stack == 1 ? 32 : 64;
  for (std::size_t row = 0; (row + 1) * sizeof(JournalEntry) <= journal.size(); ++row) {
    auto entry = load<JournalEntry>(journal, row * sizeof(JournalEntry));
    if ((row + 1) * stride <= steps.size()) {
      const std::size_t at = row * stride;
      entry.cells = crc(steps, at + links + 21, 2, crc(steps, at + links, 20));
      entry.links = crc(steps, at + links + 20, 1, crc(steps, at, links));
      for (std::size_t t = 0; t <= stack; ++t) {
        const std::size_t slot = load<std::uint32_t>(steps, at + 4 * t);
        if ((slot + 1) * 4 <= sums.size()) entry.links = crc(sums, slot * 4, 4, entry.links);
      }
    }
    entry.own = entry.checksum();
    if (entry.id != 0) std::memcpy(journal.data() + row * sizeof(JournalEntry), &entry, sizeof(entry));
  }
  const std::size_t value = 56;  // where the value of a redo begins
  if (redo.size() < value) return;
  auto entry = load<JournalEntry>(redo, 0);
  entry.own = entry.checksum();
  std::memcpy(redo.data(), &entry, sizeof(entry));
  const auto count = load<std::uint64_t>(redo, 40);
  if (count > redo.size() - value) return;
  const std::uint32_t own = crc(redo, value, count, crc(redo, 0, 48));
  std::memcpy(redo.data() + 52, &own, 4);
}

void use(Store& store, std::uint8_t flags, std::size_t stack) {
  const View view{.n_step = flags & kSequences ? std::size_t{1} : std::size_t{3},
                  .length = flags & kSequences ? std::size_t{4} : std::size_t{0}};
  Sampler sampler(store, view, Order::kUniform, 0);
  std::vector<std::vector<std::byte>> memory;
  std::vector<std::byte*> out;
  for (const Output& column : sampler.layout().columns) {
    memory.emplace_back(8 * column.row_bytes());
    out.push_back(memory.back().data());
  }
  const auto attempt = [](const auto& what) {
    try {
      what();
    } catch (const Error&) {
    }
  };
  store.verify(0, ~std::uint64_t{0});
  attempt([&] { sampler.sample(8, out); });
  attempt([&] { store.state(); });
  attempt([&] { store.episode_starts(store.reading()); });
  const Schema known = make_schema(stack);
  if (store.schema().columns_in() != known.columns_in()) return;
  for (std::size_t i = 0; i < known.columns_in(); ++i) {
    if (store.schema().column_in(i).row_bytes() != known.column_in(i).row_bytes()) return;
  }
  attempt([&] {
    const std::int64_t id = static_cast<std::int64_t>(store.first_id());
    const float value = 1;
    store.relabel(1, std::span(&id, 1), reinterpret_cast<const std::byte*>(&value));
  });
  attempt([&] {
    for (int time = 45; time < 100; ++time) append(store, step(time, stack));
  });
  attempt([&] { sampler.sample(8, out); });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Files good[] = {good_files(1), good_files(3)};
  if (size < 1) return 0;
  const std::uint8_t flags = data[0];
  const std::size_t stack = flags & kStacked ? 3 : 1;
  Files files = good[flags & kStacked ? 1 : 0];
  patch(files, data + 1, size - 1);
  if (flags & kRepair) repair(files, stack);
  const std::string path = folder() + "/bad";
  fs::remove_all(path);
  fs::create_directory(path);
  for (const auto& [name, bytes] : files) {
    std::ofstream(path + "/" + name, std::ios::binary)
        .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }
  try {
    if (read_header(path).capacity > kMostCapacity) return 0;
    OpenOptions options;
    options.write = flags & kWrite;
    options.damaged = flags & kSkip ? OnDamage::kSkip : OnDamage::kRaise;
    options.verify_all = flags & kVerify;
    const auto store = open_store(path, nullptr, 0, options);
    use(*store, flags, stack);
  } catch (const Error&) {
  } catch (const std::bad_alloc&) {
  }
  return 0;
}
