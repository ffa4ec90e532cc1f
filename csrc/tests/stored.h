// What the tests of stores on disk share: a folder, steps that can be told from their time, damage.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "rows.h"
#include "serl_fast/files.h"

namespace serl_fast::test {

namespace fs = std::filesystem;
constexpr std::size_t kStack = 2;
constexpr int kEpisode = 7;

// A folder that is gone with the object; in memory where there is a place for that, which is faster.
struct Folder {
  Folder() {
    const fs::path parent = fs::exists("/dev/shm") ? fs::path("/dev/shm") : fs::temp_directory_path();
    std::string name = (parent / "files_test_XXXXXX").string();
    path = mkdtemp(name.data());
  }
  ~Folder() { fs::remove_all(path); }
  std::string operator/(const std::string& name) const { return path + "/" + name; }
  std::string path;
};

inline Schema schema() { return make_schema(kStack); }

inline std::unique_ptr<Store> open_it(const std::string& path, std::size_t capacity = 20,
                                      OpenOptions options = {}) {
  const Schema given = schema();
  return open_store(path, &given, capacity, options);
}

inline OpenOptions reading(OnDamage damaged = OnDamage::kRaise) {
  OpenOptions options;
  options.write = false;
  options.damaged = damaged;
  return options;
}

inline Rows step(int time) {
  return one(time, time - time % kEpisode, kStack, false, time % kEpisode == kEpisode - 1);
}

inline void append_steps(Store& store, int first, int last) {
  for (int time = first; time < last; ++time) append(store, step(time));
}

// Whether the store holds the steps `first` to `last`, the oldest at age 0.
inline bool holds(const Store& store, int first, int last) {
  if (store.size() != static_cast<std::size_t>(last - first)) return false;
  const Layout layout(store.schema(), View{});
  for (int time = first; time < last; ++time) {
    Rows batch(store.schema(), 1, store.schema().columns_in());
    std::vector<std::byte*> out = batch.pointers();
    out.resize(layout.columns.size());
    const std::int64_t age = time - first;
    store.gather(std::span(&age, 1), layout, out);
    if (!is_step(batch, 0, time, time - time % kEpisode, kStack)) return false;
  }
  return true;
}

inline void flip(const std::string& path, std::size_t offset, int bit = 0) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(static_cast<std::streamoff>(offset));
  const char byte = static_cast<char>(file.get() ^ (1 << bit));
  file.seekp(static_cast<std::streamoff>(offset));
  file.put(byte);
}

// Runs `body` in a child, which then ends without destructors, as a killed process does.
inline void in_killed_child(const std::function<void()>& body) {
  const pid_t child = fork();
  if (child == 0) {
    try {
      body();
      _exit(0);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "child: %s\n", error.what());
      _exit(1);
    }
  }
  int status = 0;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

}  // namespace serl_fast::test
