// Stores on disk: opened again, shared, copied; and a full disk.
#include "serl_fast/files.h"

#include <sys/resource.h>

#include <atomic>
#include <csignal>
#include <thread>

#include "stored.h"

using namespace serl_fast;
using namespace serl_fast::test;

namespace {

void a_store_outlives_its_object() {
  const Folder folder;
  const std::string path = folder / "deep" + "/store";
  {
    const auto store = open_it(path);
    CHECK(store->size() == 0);
    append_steps(*store, 0, 13);
    store->set_draws(5);
    CHECK(holds(*store, 0, 13));
  }
  {
    const auto store = open_store(path, nullptr, 0, {});
    CHECK(holds(*store, 0, 13));
    CHECK(store->draws() == 5);
    append_steps(*store, 13, 75);  // round and round
    CHECK(holds(*store, 55, 75));
  }
  const auto store = open_store(path, nullptr, 0, {});
  CHECK(holds(*store, 55, 75));
  CHECK(store->appended() == 75);
}

void what_is_given_must_agree() {
  const Folder folder;
  open_it(folder / "store");
  const Schema other = make_schema(3);
  CHECK_THROWS(open_store(folder / "store", &other, 20, {}), Error,
               "'observations/front' is uint8 (12,) x 3 frames");
  CHECK_THROWS(open_it(folder / "store", 21), Error, "the capacity is 21; the store in");
  CHECK_THROWS(open_store(folder / "none", nullptr, 0, {}), FileError, "there is no replay store");
  CHECK_THROWS(open_store(folder / "none", nullptr, 0, reading()), FileError, "there is no replay store");
  fs::create_directories(folder / "foreign" + "/x");
  CHECK_THROWS(open_it(folder / "foreign"), Error, "holds other things");
}

void one_writer() {
  const Folder folder;
  const auto store = open_it(folder / "store");
  append_steps(*store, 0, 4);
  CHECK_THROWS(open_it(folder / "store"), FileError, "this process writes to the store already");
  const auto reader = open_store(folder / "store", nullptr, 0, reading());
  CHECK_THROWS(append(*reader, step(4)), Error, "opened for reading");
  append_steps(*store, 4, 60);
  CHECK(holds(*reader, 40, 60));
  const pid_t parent = getpid();
  in_killed_child([&] {
    if (!holds(*store, 40, 60)) _exit(2);
    try {
      append(*store, step(60));
      _exit(3);
    } catch (const Error& error) {
      if (std::string(error.what()).find("process " + std::to_string(parent)) == std::string::npos) _exit(4);
    }
  });
  append_steps(*store, 60, 61);
  CHECK(holds(*reader, 41, 61));
  store->close();
  CHECK_THROWS(append(*store, step(61)), Error, "was closed");
  CHECK(holds(*open_it(folder / "store"), 41, 61));
}

// A child that lives on must not keep the lock of a parent that is gone.
void a_child_does_not_inherit_the_lock() {
  const Folder folder;
  int done[2];
  CHECK(pipe(done) == 0);
  in_killed_child([&] {
    const auto store = open_it(folder / "store");
    append_steps(*store, 0, 3);
    if (fork() == 0) {
      char byte;
      (void)!read(done[0], &byte, 1);
      _exit(0);
    }
    _exit(0);
  });
  CHECK(holds(*open_it(folder / "store"), 0, 3));
  CHECK(write(done[1], "x", 1) == 1);
  close(done[0]);
  close(done[1]);
}

void relabelled_values_stay() {
  const Folder folder;
  {
    const auto store = open_it(folder / "store");
    append_steps(*store, 0, 10);
    const std::int64_t ids[] = {3, 100, 4};
    const float values[] = {30, 0, 40};
    CHECK(store->relabel(1, ids, reinterpret_cast<const std::byte*>(values)) == 2);
  }
  OpenOptions options;
  options.verify_all = true;
  const auto store = open_it(folder / "store", 20, options);
  const Layout layout(store->schema(), View{});
  std::vector<std::byte*> out(layout.columns.size());
  float rewards[3];
  out[kRewards] = reinterpret_cast<std::byte*>(rewards);
  const std::int64_t ages[] = {3, 4, 5};
  store->gather(ages, layout, out);
  CHECK(rewards[0] == 30 && rewards[1] == 40 && rewards[2] == 5);
}

// A full disk: nothing of the call is stored, what was there can be read, and appending goes on afterwards.
void a_full_disk() {
  const Folder folder;
  signal(SIGXFSZ, SIG_IGN);
  const auto store = open_it(folder / "store", 100000);
  append_steps(*store, 0, 5);
  rlimit old{};
  getrlimit(RLIMIT_FSIZE, &old);
  rlimit small = old;
  small.rlim_cur = 16384;
  setrlimit(RLIMIT_FSIZE, &small);
  int time = 5;
  bool full = false;
  for (; time < 10000 && !full; time += full ? 0 : 1) {
    try {
      append(*store, step(time));
    } catch (const FileError& error) {
      full =
          error.code() == EFBIG && std::string(error.what()).find("nothing was stored") != std::string::npos;
    }
  }
  CHECK(full);
  Rows many(schema(), 5000, schema().columns_in());
  for (int row = 0; row < 5000; ++row)
    fill(many, static_cast<std::size_t>(row), time + row, time + row, kStack);
  CHECK_THROWS(append(*store, many), FileError, "no room");
  CHECK(holds(*store, 0, time));
  setrlimit(RLIMIT_FSIZE, &old);
  append_steps(*store, time, time + 5);
  CHECK(holds(*store, 0, time + 5));
  CHECK(holds(*open_store(folder / "store", nullptr, 0, reading()), 0, time + 5));
}

void a_snapshot_is_the_store() {
  const Folder folder;
  Store memory(schema(), 20, 7);
  append_steps(memory, 0, 33);
  memory.set_draws(4);
  snapshot(memory, folder / "copy");
  snapshot(memory, folder / "copy");  // over the old one
  const auto loaded = load_store(folder / "copy", OnDamage::kRaise);
  CHECK(holds(*loaded, 13, 33));
  CHECK(loaded->seed() == 7 && loaded->draws() == 4 && loaded->appended() == 33);
  const auto opened = open_it(folder / "copy");
  CHECK(holds(*opened, 13, 33));
  append_steps(*opened, 33, 60);
  CHECK(holds(*opened, 40, 60));
  CHECK_THROWS(snapshot(memory, folder / "copy"), FileError, "writes to the store there");
  snapshot(*opened, folder / "second");
  CHECK(holds(*load_store(folder / "second", OnDamage::kRaise), 40, 60));
  fs::create_directories(folder / "other" + "/x");
  CHECK_THROWS(snapshot(memory, folder / "other"), Error, "is no replay store");
  CHECK(fs::exists(folder / "other" + "/x"));
}

void a_snapshot_while_appends_go_on() {
  const Folder folder;
  Store memory(schema(), 3000, 0);
  append_steps(memory, 0, 3000);
  std::atomic<bool> done{false};
  std::thread appender([&] {
    for (int time = 3000; !done; ++time) append(memory, step(time));
  });
  for (int i = 0; i < 5; ++i) {
    snapshot(memory, folder / "copy");
    const auto loaded = load_store(folder / "copy", OnDamage::kRaise);
    const int end = static_cast<int>(loaded->appended());
    CHECK(holds(*loaded, end - static_cast<int>(loaded->size()), end));
    CHECK(loaded->size() == 3000);
  }
  done = true;
  appender.join();
}

void small_stores_are_small() {
  const Folder folder;
  {
    const auto store = open_it(folder / "store", 1000000);
    append_steps(*store, 0, 3);
  }
  CHECK(inspect_store(folder / "store").disk_bytes < 300000);
  CHECK(inspect_store(folder / "store").header.closed);
}

}  // namespace

int main() {
  // A folder that is gone with ();
  // Whether the store holds the();
  // Runs `body` in a child, whi();
  a_store_outlives_its_object();
  what_is_given_must_agree();
  one_writer();
  // A child that lives on must ();
  a_child_does_not_inherit_the_lock();
  relabelled_values_stay();
  // What a child has done, seen();
  // Appends one by one and in l();
  // Whether every live step is ();
  // A reader keeps the store op();
  // A full disk: nothing of the();
  a_full_disk();
  a_snapshot_is_the_store();
  a_snapshot_while_appends_go_on();
  // Whichever byte is flipped: ();
  // As after a power failure: a();
  small_stores_are_small();
  return serl_fast::test::summary();
}
