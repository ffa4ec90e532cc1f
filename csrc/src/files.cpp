// Opening, making, copying and describing stores on disk.
#include "serl_fast/files.h"

#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "serl_fast/store_files.h"

#if defined(__linux__)
#include <fcntl.h>
#include <sys/syscall.h>
#endif

namespace serl_fast {
namespace {

namespace fs = std::filesystem;

constexpr int kAttempts = 5;  // to open a store that snapshots replace again and again

// An absolute path without a slash at its end.
std::string folder_of(const std::string& path) {
  if (path.empty()) throw Error("the path of the store is empty");
  if (path.find('\0') != std::string::npos) throw Error("the path of the store holds a zero byte");
  std::string folder = fs::absolute(path).lexically_normal().string();
  while (folder.size() > 1 && folder.back() == '/') folder.pop_back();
  return folder;
}

// The folder that a snapshot goes to: what a link leads to is replaced, not the link.
std::string target_of(const std::string& path) {
  const std::string folder = folder_of(path);
  std::error_code error;
  if (!fs::is_symlink(fs::symlink_status(folder, error))) return folder;
  const fs::path target = fs::canonical(folder, error);
  if (error) throw FileError(error.value(), folder, "it is a symbolic link that leads nowhere");
  return target.string();
}

// Whether a store has files of this name.
bool is_store_file(const std::string& name) {
  for (const char* known : {"header", "range", "checksums", "journal", "redo", "lock"}) {
    if (name == known) return true;
  }
  for (const std::string start : {"steps.", "records."}) {
    if (name.starts_with(start) && name.size() > start.size() &&
        name.find_first_not_of("0123456789", start.size()) == std::string::npos) {
      return true;
    }
  }
  return false;
}

// Removes a store's files, and the folder where nothing else is in it.
void remove_store(const std::string& folder) {
  std::vector<std::string> files;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    if (is_store_file(entry->path().filename().string())) files.push_back(entry->path().string());
  }
  for (const std::string& file : files) unlink(file.c_str());
  rmdir(folder.c_str());
}

std::string described(const Field& field) {
  std::string text = std::string(name_of(field.dtype)) + " (";
  for (std::size_t i = 0; i < field.shape.size(); ++i) {
    text += (i > 0 ? ", " : "") + std::to_string(field.shape[i]);
  }
  text += field.shape.size() == 1 ? ",)" : ")";
  return field.stack > 1 ? text + " x " + std::to_string(field.stack) + " frames" : text;
}

void require_equal(const std::vector<Field>& given, const std::vector<Field>& stored,
                   const std::string& folder) {
  for (std::size_t f = 0; f < std::max(given.size(), stored.size()); ++f) {
    const bool in_both = f < given.size() && f < stored.size() && given[f].name == stored[f].name;
    if (in_both && given[f].dtype == stored[f].dtype && given[f].shape == stored[f].shape &&
        given[f].stack == stored[f].stack) {
      continue;
    }
    if (in_both) {
      throw Error("field '" + stored[f].name + "' is " + described(given[f]) + "; the store in " + folder +
                  " holds " + described(stored[f]));
    }
    const bool missing = f >= given.size() || (f < stored.size() && stored[f].name < given[f].name);
    const std::string& name = missing ? stored[f].name : given[f].name;
    throw Error("the store in " + folder + (missing ? " has a field '" : " has no field '") + name + "'" +
                (missing ? ", the schema given has not" : ""));
  }
}

// A new folder beside `folder`, gone with this object unless it was renamed.
class Temporary {
 public:
  explicit Temporary(const std::string& folder) {
    static std::atomic<unsigned> number{0};
    const fs::path target(folder);
    std::error_code error;
    fs::create_directories(target.parent_path(), error);
    remove_left_over(target);
    std::string name = name_start(target);
    name.append(std::to_string(getpid())).append(".").append(std::to_string(number++)).append(".tmp");
    path_ = (target.parent_path() / name).string();
    if (mkdir(path_.c_str(), 0777) != 0) throw FileError(errno, path_, "it cannot be made");
  }
  ~Temporary() { remove_store(path_); }
  Temporary(const Temporary&) = delete;
  Temporary& operator=(const Temporary&) = delete;

  const std::string& path() const { return path_; }

  // Becomes `folder`, which does not exist or is an empty folder.
  bool rename_to(const std::string& folder) {
    sync_folder(path_);
    if (std::rename(path_.c_str(), folder.c_str()) != 0) {
      if (errno == EEXIST || errno == ENOTEMPTY) return false;
      throw FileError(errno, folder, "it cannot be made");
    }
    sync_folder(fs::path(folder).parent_path().string());
    return true;
  }

  // Becomes `folder`, and this object what was there before.
  void replace(const std::string& folder) {
    sync_folder(path_);
#if defined(__linux__) && defined(SYS_renameat2)
    constexpr unsigned kExchange = 2;
    if (syscall(SYS_renameat2, AT_FDCWD, path_.c_str(), AT_FDCWD, folder.c_str(), kExchange) == 0) {
      return sync_folder(fs::path(folder).parent_path().string());
    }
#endif
    // Not in one step: between the two the old store lies beside its place.
    const std::string old = path_ + ".old";
    if (std::rename(folder.c_str(), old.c_str()) != 0)
      throw FileError(errno, folder, "it cannot be replaced");
    if (std::rename(path_.c_str(), folder.c_str()) != 0) {
      const int error = errno;
      std::rename(old.c_str(), folder.c_str());
      throw FileError(error, folder, "it cannot be replaced");
    }
    sync_folder(fs::path(folder).parent_path().string());
    path_ = old;
  }

 private:
  static std::string name_start(const fs::path& target) {
    std::string name = ".";
    return name.append(target.filename().string()).append(".");
  }
  // The process in "PROCESS.NUMBER.tmp"; 0: the text is another one, as where the name of another store
  // begins with that of this one.
  static long process_of(const std::string& text) {
    const std::size_t dot = text.find('.');
    if (dot == 0 || dot == std::string::npos) return 0;
    const std::size_t digits = text.find_first_not_of("0123456789", dot + 1);
    if (text.find_first_not_of("0123456789") != dot || digits == dot + 1 || digits == std::string::npos ||
        text.substr(digits) != ".tmp") {
      return 0;
    }
    return std::atol(text.c_str());
  }
  // What processes that were killed have left.
  static void remove_left_over(const fs::path& target) {
    const std::string start = name_start(target);
    std::error_code error;
    for (fs::directory_iterator entry(target.parent_path(), error), end; !error && entry != end;
         entry.increment(error)) {
      const std::string name = entry->path().filename().string();
      if (!name.starts_with(start)) continue;
      const long process = process_of(name.substr(start.size()));
      if (process <= 0 || kill(static_cast<pid_t>(process), 0) == 0 || errno != ESRCH) continue;
      remove_store(entry->path().string());
    }
  }

  std::string path_;
};

std::unique_ptr<Store> open_at(const std::string& folder, const OpenOptions& options) {
  StoreHeader header = read_header(folder);
  try {
    Schema schema = header.schema;
    const std::size_t capacity = header.capacity;
    return std::make_unique<Store>(std::move(schema), capacity,
                                   std::make_unique<StoreFiles>(folder, std::move(header), options, false));
  } catch (const FileError&) {
    throw;
  } catch (const Error& error) {
    if (std::string(error.what()).starts_with(folder)) throw;
    throw Error(folder + ": " + error.what());
  }
}

// An empty store that is open for writing, in an empty folder.
std::unique_ptr<Store> make_at(const std::string& folder, const Schema& schema, std::size_t capacity,
                               std::uint64_t seed, const std::string& note, bool snapshot) {
  OpenOptions options;
  StoreHeader header;
  header.schema = schema;
  header.capacity = capacity;
  header.seed = seed;
  header.note = note;
  header.snapshot = snapshot;
  return std::make_unique<Store>(schema, capacity,
                                 std::make_unique<StoreFiles>(folder, std::move(header), options, true));
}

constexpr const char* kNotReplaced = "a snapshot does not replace it: give another path, or remove it first";

// Throws Error unless the folder holds a store that can be read, and nothing else.
void require_only_store(const std::string& folder) {
  if (!is_store(folder)) throw Error(folder + " exists and is no replay store; " + kNotReplaced);
  try {
    read_header(folder);
  } catch (const FileError&) {
    throw;
  } catch (const Error& error) {
    throw Error(std::string(error.what()) + "; " + kNotReplaced);
  }
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    std::error_code unknown;
    if (is_store_file(name) && fs::is_regular_file(entry->symlink_status(unknown))) continue;
    throw Error(folder + " holds '" + name +
                "', which is no file of a replay store; a snapshot does not replace it: give another path, "
                "or move '" +
                name + "' away");
  }
  if (error) throw FileError(error.value(), folder, "its files cannot be listed");
}

// Throws Error unless the store was made by snapshot() for this schema, and not changed since.
void require_snapshot(const std::string& folder, const Schema& schema) {
  const StoreHeader header = read_header(folder);
  if (!header.snapshot) {
    throw Error(folder + " is a store that open() made or that was changed since its snapshot; " +
                kNotReplaced);
  }
  try {
    require_equal(schema.observations, header.schema.observations, folder);
    require_equal(schema.steps, header.schema.steps, folder);
  } catch (const Error& error) {
    throw Error(std::string(error.what()) + "; " + kNotReplaced);
  }
}

}  // namespace

bool is_store(const std::string& path) {
  struct stat status{};
  return stat((path + "/header").c_str(), &status) == 0;
}

std::unique_ptr<Store> open_store(const std::string& path, const Schema* schema, std::size_t capacity,
                                  const OpenOptions& options) {
  const std::string folder = folder_of(path);
  if (!is_store(folder)) {
    if (!options.write) throw FileError(ENOENT, folder, "there is no replay store");
    if (schema == nullptr || capacity == 0) {
      throw FileError(ENOENT, folder,
                      "there is no replay store, and making one needs a schema and a capacity");
    }
    Temporary made(folder);
    make_at(made.path(), *schema, capacity, options.seed, options.note, false)->close();
    if (!made.rename_to(folder) && !is_store(folder)) {
      throw Error(folder + " holds other things than a replay store; give the path of a new folder");
    }
  }
  for (int attempt = 0;; ++attempt) {
    const StoreHeader header = read_header(folder);
    if (schema != nullptr) {
      require_equal(schema->observations, header.schema.observations, folder);
      require_equal(schema->steps, header.schema.steps, folder);
    }
    if (capacity != 0 && capacity != header.capacity) {
      throw Error("the capacity is " + std::to_string(capacity) + "; the store in " + folder + " has " +
                  std::to_string(header.capacity));
    }
    try {
      return open_at(folder, options);
    } catch (const Replaced&) {
      if (attempt == kAttempts) throw;
    }
  }
}

void snapshot(const Store& store, const std::string& path, const std::string& note) {
  const std::string folder = target_of(path);
  std::optional<WriterLock> lock;
  std::error_code error;
  if (fs::exists(folder, error) && !(fs::is_directory(folder, error) && fs::is_empty(folder, error))) {
    require_only_store(folder);
    lock = WriterLock::take_patiently(folder);
    if (!lock) {
      const long holder = WriterLock::holder(folder);
      throw FileError(EAGAIN, folder,
                      (holder == 0 ? "another process" : "process " + std::to_string(holder)) +
                          " writes to the store there; take the snapshot to another path");
    }
    require_snapshot(folder, store.schema());
  }
  Temporary made(folder);
  const std::unique_ptr<Store> copy =
      make_at(made.path(), store.schema(), store.capacity(), store.seed(), note, true);
  copy->copy_from(store);
  copy->close();
  if (lock) {
    require_only_store(folder);  // copying took its time
    return made.replace(folder);
  }
  if (!made.rename_to(folder))
    throw Error(folder + " has come to be something else while the snapshot was taken");
}

std::unique_ptr<Store> load_store(const std::string& path, OnDamage damaged) {
  OpenOptions options;
  options.write = false;
  options.damaged = damaged;
  const std::unique_ptr<Store> from = open_store(path, nullptr, 0, options);
  auto store = std::make_unique<Store>(from->schema(), from->capacity(), from->seed());
  store->copy_from(*from);
  return store;
}

StoreInfo inspect_store(const std::string& path) {
  const std::string folder = folder_of(path);
  StoreInfo info;
  info.header = read_header(folder);
  info.damage = header_damage(folder);
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    struct stat status{};
    if (stat(entry->path().c_str(), &status) == 0)
      info.disk_bytes += static_cast<std::uint64_t>(status.st_blocks) * 512;
  }
  if (!WriterLock::take(folder)) info.writer = WriterLock::holder(folder);
  return info;
}

}  // namespace serl_fast
