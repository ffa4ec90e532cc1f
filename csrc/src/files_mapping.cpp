// MappedFile.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "serl_fast/mapped_file.h"

namespace serl_fast {
namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kLargestStep = std::size_t{256} << 20;

std::size_t whole_pages(std::size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

std::size_t size_of_file(int file, const std::string& path) {
  struct stat status{};
  if (fstat(file, &status) != 0) throw FileError(errno, path, "its size cannot be read");
  if (!S_ISREG(status.st_mode)) throw FileError(EINVAL, path, "it is no regular file");
  return static_cast<std::size_t>(status.st_size);
}

// A limit of the process would otherwise be told by a signal that ends it.
bool beyond_limit(std::size_t bytes) {
  rlimit limit{};
  return getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && bytes > limit.rlim_cur;
}

}  // namespace

FileError::FileError(int code, std::string path, const std::string& what)
    : Error(path + ": " + what + ": " + std::generic_category().message(code)),
      code_(code),
      path_(std::move(path)) {}

MappedFile::MappedFile(std::string path, std::size_t reserved, Access access, bool create)
    : path_(std::move(path)), reserved_(whole_pages(std::max<std::size_t>(reserved, 1))) {
  const bool write = access == Access::kWrite;
  file_ = open(path_.c_str(), (write ? O_RDWR : O_RDONLY) | (create ? O_CREAT : 0) | O_CLOEXEC, 0666);
  if (file_ < 0) throw FileError(errno, path_, "it cannot be opened");
  try {
    usable_ = std::min(size_of_file(file_, path_), reserved_);
    void* memory = mmap(nullptr, reserved_, write ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, file_, 0);
    if (memory == MAP_FAILED) throw FileError(errno, path_, "it cannot be mapped");
    data_ = static_cast<std::byte*>(memory);
    // A copied file may have holes: a write into one would find the disk full too late.
    if (write && usable_ > 0) {
      if (const int error = allocate(0, usable_); error != 0) {
        munmap(data_, reserved_);
        throw FileError(error, path_, "there is no room for it");
      }
    }
  } catch (...) {
    ::close(file_);
    throw;
  }
}

MappedFile::~MappedFile() {
  munmap(data_, reserved_);
  ::close(file_);
}

std::string MappedFile::name() const { return path_.substr(path_.rfind('/') + 1); }

bool MappedFile::usable_at_least(std::size_t bytes) const {
  if (bytes <= usable()) return true;
  struct stat status{};
  if (fstat(file_, &status) != 0) return false;
  const std::size_t size = std::min(static_cast<std::size_t>(status.st_size), reserved_);
  if (size > usable()) usable_.store(size, std::memory_order_release);
  return bytes <= size;
}

void MappedFile::ensure(std::size_t bytes) {
  const std::size_t now = usable();
  if (bytes <= now) return;
  const std::size_t needed = whole_pages(bytes);
  const std::size_t wished =
      std::clamp(whole_pages(now + std::min(now / 8, kLargestStep)), needed, reserved_);
  std::size_t grown = wished;
  int error = allocate(now, grown);
  if (error != 0 && needed < wished) {
    grown = needed;
    error = allocate(now, grown);
  }
  if (error != 0) {
    throw FileError(
        error, path_,
        "there is no room for " + std::to_string(needed - now) + " more bytes; nothing was stored");
  }
  usable_.store(grown, std::memory_order_release);
}

int MappedFile::allocate(std::size_t from, std::size_t to) const {
  if (beyond_limit(to)) return EFBIG;
#if defined(__linux__)
  int error;
  do {
    error = posix_fallocate(file_, static_cast<off_t>(from), static_cast<off_t>(to - from));
  } while (error == EINTR);
  return error;
#else
  if (from == 0 && usable() > 0) return 0;
  const std::vector<char> zeros(std::size_t{1} << 20);
  for (std::size_t at = from; at < to;) {
    const ssize_t written =
        pwrite(file_, zeros.data(), std::min(zeros.size(), to - at), static_cast<off_t>(at));
    if (written < 0 && errno != EINTR) return errno;
    if (written > 0) at += static_cast<std::size_t>(written);
  }
  return 0;
#endif
}

bool MappedFile::claim_alone() { return flock(file_, LOCK_EX | LOCK_NB) == 0; }

bool MappedFile::share() { return flock(file_, LOCK_SH | LOCK_NB) == 0; }

bool MappedFile::in_place() const {
  struct stat here{}, there{};
  return fstat(file_, &here) == 0 && stat(path_.c_str(), &there) == 0 && here.st_dev == there.st_dev &&
         here.st_ino == there.st_ino;
}

void MappedFile::sync() const {
#if defined(__linux__)
  const int result = fdatasync(file_);
#else
  const int result = fsync(file_);
#endif
  if (result != 0) throw FileError(errno, path_, "it cannot be forced to the disk");
}

void sync_folder(const std::string& path) {
  const int folder = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0) throw FileError(errno, path, "it cannot be opened");
  const int error = fsync(folder) == 0 ? 0 : errno;
  ::close(folder);
  if (error != 0 && error != EINVAL) throw FileError(error, path, "it cannot be forced to the disk");
}

}  // namespace serl_fast
