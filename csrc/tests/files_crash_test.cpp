// Stores on disk whose writer was killed, or whose machine was switched off.
#include <sys/mman.h>

#include <atomic>
#include <csignal>

#include "stored.h"

using namespace serl_fast;
using namespace serl_fast::test;

namespace {

void a_killed_writer_loses_nothing() {
  const Folder folder;
  for (int round = 0; round < 12; ++round) {
    in_killed_child([&] {
      const auto store = open_it(folder / "store");
      CHECK(store->appended() == static_cast<std::uint64_t>(round) * 9);
      append_steps(*store, round * 9, round * 9 + 9);
    });
    const auto store = open_store(folder / "store", nullptr, 0, reading());
    CHECK(holds(*store, std::max(0, round * 9 + 9 - 20), round * 9 + 9));
  }
}

// What a child has done, seen by the parent also when the child is gone.
struct Shared {
  std::atomic<int> appended{0};
  std::atomic<int> relabelled{0};
  std::atomic<int> checked{0};
  std::atomic<int> wrong{0};
};

Shared* make_shared_memory() {
  void* memory = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  return new (memory) Shared;
}

// Appends one by one and in lots, and doubles rewards, until it is killed.
[[noreturn]] void write_for_ever(const std::string& path, std::size_t capacity, Shared& done) {
  const auto store = open_it(path, capacity);
  for (int time = static_cast<int>(store->appended());; ++time) {
    if (time % 5 == 0) {
      Rows many(schema(), 20, schema().columns_in());
      for (int row = 0; row < 20; ++row) {
        const int at = time + row;
        fill(many, static_cast<std::size_t>(row), at, at - at % kEpisode, kStack, false,
             at % kEpisode == kEpisode - 1);
      }
      append(*store, many);
      time += 19;
    } else {
      append(*store, step(time));
    }
    done.appended = time + 1;
    const std::int64_t id = time - time % 3;
    const auto value = static_cast<float>(2 * id);
    if (store->relabel(1, std::span(&id, 1), reinterpret_cast<const std::byte*>(&value)) == 1) {
      done.relabelled = static_cast<int>(id) + 1;
    }
  }
}

// Whether every live step is right, its reward doubled or, if it is newer than `relabelled`, not.
bool all_right(const Store& store, int relabelled) {
  const Reading held = store.reading();
  const Layout layout(store.schema(), View{});
  std::vector<std::uint64_t> ids;
  for (std::uint64_t id = held.begin(); id < held.end(); ++id) ids.push_back(id);
  Rows batch(store.schema(), ids.size(), store.schema().columns_in());
  std::vector<std::byte*> out = batch.pointers();
  out.resize(layout.columns.size());
  store.copy(held, ids, layout, out);
  for (std::size_t row = 0; row < ids.size(); ++row) {
    const int time = static_cast<int>(ids[row]);
    float& reward = batch.as<float>(kRewards)[row];
    const bool doubled = reward == static_cast<float>(2 * time) && time % 3 == 0;
    if (time + 1 == relabelled && !doubled) return false;
    if (doubled) reward = static_cast<float>(time);
    if (!is_step(batch, row, time, time - time % kEpisode, kStack)) return false;
  }
  return true;
}

void killed_at_any_instant() {
  const Folder folder;
  Shared& done = *make_shared_memory();
  std::srand(1);
  int rounds_with_steps = 0;
  for (int round = 0; round < 200; ++round) {
    const std::string path = folder / "store" + std::to_string(round / 50);
    const std::size_t capacity = round / 50 % 2 == 0 ? 20 : 3000;
    if (round % 50 == 0) done.appended = done.relabelled = 0;
    const int before = done.appended;
    const pid_t child = fork();
    if (child == 0) write_for_ever(path, capacity, done);
    // Every fourth one may also be killed while it opens the store.
    for (int i = 0; round % 4 != 0 && i < 5000 && done.appended == before; ++i) usleep(200);
    usleep(static_cast<useconds_t>(std::rand() % 4000));
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    if (!is_store(path)) continue;
    rounds_with_steps += done.appended > before ? 1 : 0;
    OpenOptions options;
    options.write = round % 2 == 0;
    const auto store = open_store(path, nullptr, 0, options);
    CHECK(store->appended() >= static_cast<std::uint64_t>(done.appended));
    CHECK(store->appended() <= static_cast<std::uint64_t>(done.appended) + 20);
    CHECK(store->size() == std::min<std::size_t>(store->appended(), capacity));
    CHECK(store->verify(0, ~std::uint64_t{0}).empty());
    CHECK(all_right(*store, done.relabelled));
    done.appended = static_cast<int>(store->appended());
  }
  CHECK(rounds_with_steps > 100);
}

// A reader keeps the store open while writers come, are killed in the middle of something, and come again.
void a_reader_survives_its_writers() {
  const Folder folder;
  Shared& done = *make_shared_memory();
  open_it(folder / "store", 500);
  const pid_t child = fork();
  if (child == 0) {
    const auto store = open_store(folder / "store", nullptr, 0, reading());
    for (;; ++done.checked) {
      try {
        if (!all_right(*store, 0)) ++done.wrong;
      } catch (const Error& error) {
        std::fprintf(stderr, "reader: %s\n", error.what());
        ++done.wrong;
      }
    }
  }
  for (int round = 0; round < 30; ++round) {
    const pid_t writer = fork();
    if (writer == 0) write_for_ever(folder / "store", 500, done);
    usleep(20000);
    kill(writer, SIGKILL);
    waitpid(writer, nullptr, 0);
  }
  const int before = done.checked;
  for (int i = 0; i < 1000 && done.checked <= before; ++i) usleep(1000);
  CHECK(done.checked > before);  // not held up by what the last writer was doing
  CHECK(done.wrong == 0);
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  CHECK(open_it(folder / "store", 500)->appended() >= static_cast<std::uint64_t>(done.appended));
}

// As after a power failure: another boot id, and the newest steps are there in parts.
void a_power_failure() {
  const Folder folder;
  const auto prepare = [&] {
    fs::remove_all(folder / "store");
    in_killed_child([&] { append_steps(*open_it(folder / "store"), 0, 50); });
    StoreHeader header = read_header(folder / "store");
    header.boot = "another";
    header.closed = header.durable = false;
    write_header(folder / "store", header);
  };
  prepare();
  CHECK(holds(*open_it(folder / "store"), 30, 50));
  prepare();
  flip(folder / "store" + "/steps.0", (49 % 36) * 64 + 30);
  flip(folder / "store" + "/journal", (48 % 36) * 32);
  flip(folder / "store" + "/steps.0", (40 % 36) * 64 + 30);
  {
    const auto store = open_it(folder / "store");
    CHECK(store->first_id() == 30 && store->appended() == 48);
    CHECK(store->verify(0, 100).size() == 1 && store->verify(0, 100)[0].id == 40);
    append_steps(*store, 48, 52);
  }
  const auto store = open_it(folder / "store");
  CHECK(store->first_id() == 32 && store->appended() == 52);
  CHECK(store->verify(0, 100).size() == 1);
}

void syncing_works() {
  const Folder folder;
  for (const Sync sync : {Sync::kEach, Sync::kInterval}) {
    OpenOptions options;
    options.sync = sync;
    options.sync_interval = 0.001;
    fs::remove_all(folder / "store");
    const auto store = open_it(folder / "store", 20, options);
    append_steps(*store, 0, 30);
    Rows many(schema(), 50, schema().columns_in());
    for (int row = 0; row < 50; ++row)
      fill(many, static_cast<std::size_t>(row), 30 + row, (30 + row) / 7 * 7, kStack);
    append(*store, many);
    CHECK(holds(*store, 60, 80));
    store->flush();
    CHECK(holds(*open_store(folder / "store", nullptr, 0, reading()), 60, 80));
  }
}

}  // namespace

int main() {
  a_killed_writer_loses_nothing();
  killed_at_any_instant();
  a_reader_survives_its_writers();
  a_power_failure();
  syncing_works();
  return serl_fast::test::summary();
}
