// Who may write to a store on disk.
#pragma once

#include <memory>
#include <optional>
#include <string>

namespace serl_fast {

// The right to change the files of a store, held by one process at a time and gone with it, however it ends.
// A child that a fork() makes does not have it.
class WriterLock {
 public:
  // None where another process has it. `shared`: for reading where the pins cannot be written; such holders
  // keep writers out, not one another. Throws FileError where the file cannot be opened.
  static std::optional<WriterLock> take(const std::string& folder, bool shared = false);
  // The same, but waits a little: a reader that opens the store or a process that is just ending has the lock
  // for a moment.
  static std::optional<WriterLock> take_patiently(const std::string& folder);
  // The process that said it holds the lock; 0: none.
  static long holder(const std::string& folder);

  WriterLock(WriterLock&&) = default;
  WriterLock& operator=(WriterLock&&) = default;
  ~WriterLock();

  bool held() const;    // false in a forked child, and after release()
  void name_process();  // so that others can say who holds it
  void release();

 private:
  struct File;
  explicit WriterLock(std::shared_ptr<File> file);
  static std::shared_ptr<File> open_lock(const std::string& path);

  std::shared_ptr<File> file_;
};

}  // namespace serl_fast
