// WriterLock.
#include <fcntl.h>
#include <pthread.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_set>
#include <utility>

#include "serl_fast/mapped_file.h"
#include "serl_fast/writer_lock.h"

namespace serl_fast {
namespace {

constexpr auto kPatience = std::chrono::milliseconds(300);
constexpr int kAttempts = 100;

bool is_at(int file, const std::string& path) {
  struct stat here{}, there{};
  return fstat(file, &here) == 0 && stat(path.c_str(), &there) == 0 && here.st_dev == there.st_dev &&
         here.st_ino == there.st_ino;
}

}  // namespace

// flock() belongs to the open file, which a forked child shares: while the child lives, its copy would keep
// the lock of a parent that is gone. So children close theirs at once.
struct WriterLock::File {
  explicit File(int descriptor) : file(descriptor) {
    static const int registered = pthread_atfork([] { mutex().lock(); }, [] { mutex().unlock(); }, in_child);
    (void)registered;
    const std::lock_guard lock(mutex());
    all().insert(this);
  }
  ~File() {
    const std::lock_guard lock(mutex());
    all().erase(this);
    if (file >= 0) ::close(file);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  static std::mutex& mutex() {
    static std::mutex* const one = new std::mutex;  // outlives every store
    return *one;
  }
  static std::unordered_set<File*>& all() {
    static auto* const one = new std::unordered_set<File*>;
    return *one;
  }
  static void in_child() {
    for (File* each : all()) {
      if (each->file >= 0) ::close(each->file);
      each->file = -1;
    }
    mutex().unlock();
  }

  int file;
};

WriterLock::WriterLock(std::shared_ptr<File> file) : file_(std::move(file)) {}
WriterLock::~WriterLock() = default;

std::optional<WriterLock> WriterLock::take(const std::string& folder, bool shared) {
  const std::string path = folder + "/lock";
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    std::shared_ptr<File> file = open_lock(path);
    int result;
    do {
      result = flock(file->file, (shared ? LOCK_SH : LOCK_EX) | LOCK_NB);
    } while (result != 0 && errno == EINTR);
    if (result != 0) {
      if (errno != EWOULDBLOCK) throw FileError(errno, path, "it cannot be locked");
      return std::nullopt;
    }
    // Else a snapshot has replaced the folder in between, and this is the lock of what was there before.
    if (is_at(file->file, path)) return WriterLock(std::move(file));
  }
  throw FileError(EAGAIN, path, "it is replaced again and again");
}

std::shared_ptr<WriterLock::File> WriterLock::open_lock(const std::string& path) {
  int descriptor = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (descriptor < 0 && (errno == EACCES || errno == EROFS)) {
    descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  }
  if (descriptor < 0) throw FileError(errno, path, "it cannot be opened");
  return std::make_shared<File>(descriptor);
}

std::optional<WriterLock> WriterLock::take_patiently(const std::string& folder) {
  const auto until = std::chrono::steady_clock::now() + kPatience;
  std::optional<WriterLock> lock = take(folder);
  while (!lock && std::chrono::steady_clock::now() < until) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    lock = take(folder);
  }
  return lock;
}

long WriterLock::holder(const std::string& folder) {
  const int descriptor = open((folder + "/lock").c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return 0;
  char text[24] = {};
  const ssize_t length = read(descriptor, text, sizeof(text) - 1);
  ::close(descriptor);
  return length > 0 ? std::max(0L, std::atol(text)) : 0;
}

bool WriterLock::held() const { return file_ != nullptr && file_->file >= 0; }

void WriterLock::name_process() {
  const std::string text = std::to_string(getpid()) + "\n";
  // Only a help for people: a failure is no reason to refuse.
  if (ftruncate(file_->file, 0) == 0 && pwrite(file_->file, text.data(), text.size(), 0) < 0) return;
}

void WriterLock::release() {
  if (held() && ftruncate(file_->file, 0) != 0) errno = 0;
  file_.reset();
}

}  // namespace serl_fast
