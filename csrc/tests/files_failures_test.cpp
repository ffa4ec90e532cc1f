// Stores on disk when the system refuses, or another process comes, at the worst moment: calls of the system
// that the store makes can be looked into here.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/syscall.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <iterator>
#include <thread>

#include "serl_fast/store_files.h"
#include "stored.h"

using namespace serl_fast;
using namespace serl_fast::test;

#if defined(__linux__)

namespace {

std::function<int(const std::string&)> at_sync;  // an error number, 0: go on
std::function<void(const std::string&, int)> before_lock, after_lock;
std::function<void(const std::string&)> at_room;

std::string path_of(int file) {
  std::string path(512, '\0');
  const ssize_t length =
      readlink(("/proc/self/fd/" + std::to_string(file)).c_str(), path.data(), path.size());
  path.resize(static_cast<std::size_t>(std::max<ssize_t>(length, 0)));
  return path;
}

}  // namespace

extern "C" int fdatasync(int file) {
  if (at_sync) {
    if (const int error = at_sync(path_of(file)); error != 0) {
      errno = error;
      return -1;
    }
  }
  return static_cast<int>(syscall(SYS_fdatasync, file));
}

extern "C" int flock(int file, int operation) noexcept {
  if (before_lock) before_lock(path_of(file), operation);
  const auto result = static_cast<int>(syscall(SYS_flock, file, operation));
  const int error = errno;
  if (after_lock) after_lock(path_of(file), operation);
  errno = error;
  return result;
}

extern "C" int posix_fallocate(int file, off_t offset, off_t length) {
  if (at_room) at_room(path_of(file));
  return syscall(SYS_fallocate, file, 0, offset, length) == 0 ? 0 : errno;
}

namespace {

float reward_of(const Store& store, std::int64_t id) {
  const Layout layout(store.schema(), View{});
  Rows batch(store.schema(), 1, store.schema().columns_in());
  std::vector<std::byte*> out = batch.pointers();
  out.resize(layout.columns.size());
  store.gather_ids(std::span(&id, 1), layout, out);
  return batch.as<float>(kRewards)[0];
}

void relabel(Store& store, std::int64_t id, float value) {
  store.relabel(1, std::span(&id, 1), reinterpret_cast<const std::byte*>(&value));
}

// A snapshot holds the steps [first, last).
void make_snapshot(const std::string& path, int first, int last) {
  Store store(schema(), 20, 0);
  append_steps(store, first, last);
  snapshot(store, path);
}

// The writer is killed when the new value is safe and not yet in its place. A reader that has looked at the
// step before must not go by that.
void a_killed_relabel_is_finished_before_anybody_reads() {
  enum What { kSame, kAnotherReaderComes, kNumberIsUsedAgain };
  for (const What what : {kSame, kAnotherReaderComes, kNumberIsUsedAgain}) {
    const Folder folder;
    append_steps(*open_it(folder / "store"), 0, 10);
    const auto reader = open_store(folder / "store", nullptr, 0, reading());
    CHECK(reward_of(*reader, 4) == 4);
    const pid_t child = fork();
    if (child == 0) {
      OpenOptions options;
      options.sync = Sync::kEach;
      const auto store = open_it(folder / "store", 20, options);
      at_sync = [](const std::string& path) { return path.ends_with("/redo") ? kill(getpid(), SIGKILL) : 0; };
      relabel(*store, 4, 77);
      _exit(1);
    }
    int status = 0;
    waitpid(child, &status, 0);
    CHECK(WIFSIGNALED(status));
    CHECK(reader->files()->range().closed == static_cast<std::uint32_t>(child));
    if (what == kNumberIsUsedAgain) reader->files()->range().closed = 1;
    if (what == kAnotherReaderComes) {
      CHECK(reward_of(*open_store(folder / "store", nullptr, 0, reading()), 4) == 77);
    }
    CHECK(reward_of(*reader, 4) == 77);
    CHECK(reader->files()->range().closed == 0);
  }
}

void an_old_redo_is_not_used() {
  const Folder folder;
  const std::string redo = folder / "store" + "/redo";
  auto store = open_it(folder / "store");
  append_steps(*store, 0, 3);
  // As the file is while the change is under way.
  OpenOptions options;
  options.sync = Sync::kEach;
  store.reset();
  store = open_it(folder / "store", 20, options);
  at_sync = [&](const std::string& path) {
    if (path.ends_with("/redo")) fs::copy_file(path, folder / "old");
    return 0;
  };
  relabel(*store, 1, 111);
  int synced = 0;
  at_sync = [&](const std::string& path) { return synced += path.ends_with("/redo"), 0; };
  store->flush();
  CHECK(synced == 1);
  at_sync = nullptr;
  relabel(*store, 1, 222);
  store.reset();
  fs::remove(redo);
  fs::copy_file(folder / "old", redo);
  for (int round = 0; round < 2; ++round) {
    in_killed_child([&] { CHECK(reward_of(*open_it(folder / "store"), 1) == 222); });
  }
}

void a_failed_sync_is_not_forgotten() {
  for (const Sync sync : {Sync::kInterval, Sync::kEach, Sync::kNone}) {
    const Folder folder;
    OpenOptions options;
    options.sync = sync;
    options.sync_interval = 0.01;
    std::atomic<bool> armed{false};
    std::atomic<int> calls{0};
    at_sync = [&](const std::string&) { return armed && calls++ == 0 ? EIO : 0; };  // before a thread asks
    auto store = open_it(folder / "store", 20, options);
    append_steps(*store, 0, 3);
    armed = true;
    if (sync == Sync::kEach)
      CHECK_THROWS(append(*store, step(3)), FileError, "it cannot be forced to the disk");
    if (sync == Sync::kNone) CHECK_THROWS(store->flush(), FileError, "it cannot be forced to the disk");
    while (calls == 0) std::this_thread::yield();
    if (sync != Sync::kInterval) CHECK_THROWS(store->flush(), FileError, "it cannot be forced to the disk");
    CHECK_THROWS(store->close(), FileError, "it cannot be forced to the disk");
    store->close();
    at_sync = nullptr;
    CHECK(read_header(folder / "store").closed && !read_header(folder / "store").durable);
    CHECK(open_it(folder / "store")->size() >= 3);
    CHECK(read_header(folder / "store").durable);
  }
}

void a_failed_close_lets_others_write() {
  const Folder folder;
  const std::string header = folder / "store" + "/header";
  const auto store = open_it(folder / "store");
  append_steps(*store, 0, 3);
  fs::rename(header, folder / "header");
  fs::create_directory(header);
  CHECK_THROWS(store->close(), FileError, "header");
  fs::remove(header);
  fs::rename(folder / "header", header);
  CHECK(holds(*open_it(folder / "store"), 0, 3));
}

// A reader comes when the writer has just found that nobody is there.
void pins_outlive_the_opening_of_a_writer() {
  const Folder folder;
  append_steps(*open_it(folder / "store"), 0, 30);
  std::unique_ptr<Store> reader;
  std::unique_ptr<Reading> held;
  bool done = false;
  after_lock = [&](const std::string& path, int operation) {
    if (done || !path.ends_with("/range") || (operation & LOCK_SH) == 0) return;
    done = true;
    reader = open_store(folder / "store", nullptr, 0, reading());
    held = std::make_unique<Reading>(reader->files()->range(), 20);
  };
  const auto writer = open_it(folder / "store");
  after_lock = nullptr;
  CHECK(held != nullptr);
  const auto& pins = writer->files()->range().pins;
  CHECK(std::count_if(pins.begin(), pins.end(), [](const auto& pin) { return pin.word != 0; }) == 1);
  held.reset();
}

// The folder is exchanged between the opening of its lock and the locking.
void one_writer_when_a_snapshot_comes() {
  const Folder folder;
  make_snapshot(folder / "store", 0, 5);
  bool done = false;
  before_lock = [&](const std::string& path, int operation) {
    if (done || !path.ends_with("/store/lock") || (operation & LOCK_EX) == 0) return;
    done = true;
    make_snapshot(folder / "store", 0, 8);
  };
  const auto writer = open_it(folder / "store");
  before_lock = nullptr;
  CHECK(done && holds(*writer, 0, 8));
  CHECK_THROWS(open_it(folder / "store"), FileError, "this process writes to the store already");
}

// The folder is exchanged when a reader has opened some of the files.
void files_of_two_stores_are_not_mixed() {
  const Folder folder;
  make_snapshot(folder / "store", 0, 5);
  auto lock = WriterLock::take(folder / "store");
  bool done = false;
  at_room = [&](const std::string& path) {
    if (done || !path.ends_with("/store/range")) return;
    done = true;
    lock->release();
    make_snapshot(folder / "store", 0, 8);
  };
  const auto reader = open_store(folder / "store", nullptr, 0, reading());
  at_room = nullptr;
  CHECK(done && holds(*reader, 0, 8));
  append_steps(*open_it(folder / "store"), 8, 12);
  CHECK(holds(*reader, 0, 12));
}

void only_left_over_snapshots_are_removed() {
  const Folder folder;
  pid_t gone = fork();
  if (gone == 0) _exit(0);
  waitpid(gone, nullptr, 0);
  const std::string dead = std::to_string(gone), alive = std::to_string(getpid());
  for (const std::string& name : {"." + dead + ".0.tmp", "." + dead + "." + alive + ".0.tmp",
                                  "." + alive + ".0.tmp", "." + dead + ".0.tmp.tmp", "." + dead + "..tmp"}) {
    fs::create_directory(folder / ".store" + name);
  }
  open_it(folder / "store");
  CHECK(!fs::exists(folder / ".store." + dead + ".0.tmp"));
  CHECK(std::distance(fs::directory_iterator(folder.path), fs::directory_iterator()) == 5);
}

void process_numbers_of_another_space_are_refused() {
  const Folder folder;
  const auto writer = open_it(folder / "store");
  const std::string range = folder / "store" + "/range";
  flip(range, offsetof(Control, processes));
  CHECK_THROWS(open_store(folder / "store", nullptr, 0, reading()), Error, "one another's process numbers");
  writer->close();
  CHECK_THROWS(open_it(folder / "store"), Error, "one another's process numbers");
}

void a_reader_without_the_right_to_write_is_not_called_a_writer() {
  const Folder folder;
  open_it(folder / "store")->close();
  {
    const auto reader = serl_fast::WriterLock::take(folder / "store", /*shared=*/true);
    CHECK_THROWS(open_it(folder / "store"), Error, "or reads it without the right to write");
  }
  CHECK(open_it(folder / "store")->size() == 0);
}

// A thread of the parent holds the mutex when the child is made.
void a_forked_child_does_not_wait_to_close() {
  const Folder folder;
  const auto store = open_it(folder / "store");
  append_steps(*store, 0, 20);
  auto held = std::make_unique<Reading>(store->files()->range(), 20);
  std::thread appender([&] { append_steps(*store, 20, 60); });
  while (store->appended() < 36) std::this_thread::yield();
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  in_killed_child([&] {
    alarm(60);
    store->close();
    CHECK_THROWS(store->flush(), Error, "is written by process");
    if (failures != 0) _exit(1);
  });
  held.reset();
  appender.join();
  CHECK(holds(*store, 40, 60));
}

}  // namespace

int main() {
  a_killed_relabel_is_finished_before_anybody_reads();
  an_old_redo_is_not_used();
  a_failed_sync_is_not_forgotten();
  a_failed_close_lets_others_write();
  pins_outlive_the_opening_of_a_writer();
  one_writer_when_a_snapshot_comes();
  files_of_two_stores_are_not_mixed();
  only_left_over_snapshots_are_removed();
  process_numbers_of_another_space_are_refused();
  a_reader_without_the_right_to_write_is_not_called_a_writer();
  a_forked_child_does_not_wait_to_close();
  return serl_fast::test::summary();
}

#else

int main() { return 0; }

#endif
