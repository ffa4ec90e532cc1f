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

#include "serl_fast/store_files.h"

#if defined(__linux__)
#include <fcntl.h>
#include <sys/syscall.h>
#endif

namespace serl_fast {
namespace {

namespace fs = std::filesystem;

// An absolute path without a slash at its end.
std::string folder_of(const std::string& path) {
  if (path.empty()) throw Error("the path of the store is empty");
  std::string folder = fs::absolute(path).lexically_normal().string();
  while (folder.size() > 1 && folder.back() == '/') folder.pop_back();
  return folder;
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
  ~Temporary() {
    std::error_code error;
    fs::remove_all(path_, error);
  }
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
  // What processes that were killed have left.
  static void remove_left_over(const fs::path& target) {
    const std::string start = name_start(target);
    std::error_code error;
    for (fs::directory_iterator entry(target.parent_path(), error), end; !error && entry != end;
         entry.increment(error)) {
      const std::string name = entry->path().filename().string();
      if (!name.starts_with(start) || !name.ends_with(".tmp")) continue;
      char* rest = nullptr;
      const long process = std::strtol(name.c_str() + start.size(), &rest, 10);
      if (process <= 0 || *rest != '.' || kill(static_cast<pid_t>(process), 0) == 0 || errno != ESRCH)
        continue;
      std::error_code ignored;
      fs::remove_all(entry->path(), ignored);
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
                               std::uint64_t seed, const std::string& note) {
  OpenOptions options;
  StoreHeader header;
  header.schema = schema;
  header.capacity = capacity;
  header.seed = seed;
  header.note = note;
  return std::make_unique<Store>(schema, capacity,
                                 std::make_unique<StoreFiles>(folder, std::move(header), options, true));
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
    make_at(made.path(), *schema, capacity, options.seed, options.note)->close();
    if (!made.rename_to(folder) && !is_store(folder)) {
      throw Error(folder + " holds other things than a replay store; give the path of a new folder");
    }
  }
  const StoreHeader header = read_header(folder);
  if (schema != nullptr) {
    require_equal(schema->observations, header.schema.observations, folder);
    require_equal(schema->steps, header.schema.steps, folder);
  }
  if (capacity != 0 && capacity != header.capacity) {
    throw Error("the capacity is " + std::to_string(capacity) + "; the store in " + folder + " has " +
                std::to_string(header.capacity));
  }
  return open_at(folder, options);
}

void snapshot(const Store& store, const std::string& path, const std::string& note) {
  const std::string folder = folder_of(path);
  struct stat status{};
  const bool exists = lstat(folder.c_str(), &status) == 0;
  if (exists && !is_store(folder) && !(S_ISDIR(status.st_mode) && fs::is_empty(folder))) {
    throw Error(folder + " exists and is no replay store; a snapshot does not replace it");
  }
  std::optional<WriterLock> lock;
  if (exists && is_store(folder)) {
    lock = WriterLock::take(folder);
    if (!lock) {
      throw FileError(EAGAIN, folder,
                      "process " + std::to_string(WriterLock::holder(folder)) +
                          " writes to the store there; take the snapshot to another path");
    }
  }
  Temporary made(folder);
  const std::unique_ptr<Store> copy =
      make_at(made.path(), store.schema(), store.capacity(), store.seed(), note);
  copy->copy_from(store);
  copy->close();
  if (lock) return made.replace(folder);
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
