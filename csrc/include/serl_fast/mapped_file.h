// A file seen as memory.
#pragma once

#include <atomic>
#include <cstddef>
#include <string>
#include <string_view>

#include "serl_fast/error.h"

namespace serl_fast {

// What the system refused: `code` is its error number.
class FileError : public Error {
 public:
  FileError(int code, std::string path, const std::string& what);  // "PATH: what: reason of the system"

  int code() const { return code_; }
  const std::string& path() const { return path_; }

 private:
  int code_;
  std::string path_;
};

// Mapped at the largest size that it may ever have, while on the disk it is as large as it was needed so far.
// Only the first usable() bytes may be touched; beyond them lies the end of the file. Room on the disk is
// taken before it is written to, so that a full disk is an Error of ensure() and never a signal.
class MappedFile {
 public:
  enum class Access { kRead, kWrite };

  // Opens a file; with `create` makes it where it does not exist. Throws FileError.
  MappedFile(std::string path, std::size_t reserved, Access access, bool create);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  std::string name() const;  // without the folder
  std::byte* data() const { return data_; }
  // Of the writer. Readers in other processes ask usable_at_least(), which looks at the file again.
  std::size_t usable() const { return usable_.load(std::memory_order_acquire); }
  bool usable_at_least(std::size_t bytes) const;

  // Makes the first `bytes` bytes usable; zero where nothing was written. Grows in steps that keep the number
  // of calls and of extents small. Throws FileError, and nothing has changed.
  void ensure(std::size_t bytes);
  // Whether nobody else shares the file. Then nobody can until this object does.
  bool claim_alone();
  // False while somebody else is alone with it. Children of the process share it too.
  bool share();
  // Whether the path still leads to this file.
  bool in_place() const;
  // Returns when everything written is on the disk. Throws FileError.
  void sync() const;

 private:
  int allocate(std::size_t from, std::size_t to) const;  // an error number, 0: done

  const std::string path_;
  const std::size_t reserved_;
  int file_ = -1;
  std::byte* data_ = nullptr;
  mutable std::atomic<std::size_t> usable_{0};
};

// Forces the names in a folder to the disk. Throws FileError.
void sync_folder(const std::string& path);

}  // namespace serl_fast
