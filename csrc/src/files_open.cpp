// StoreFiles: opening, forcing to the disk and closing.
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <limits>
#include <string>
#include <thread>
#include <utility>

#include "files_redo.h"
#include "serl_fast/store_files.h"

namespace serl_fast {
namespace {

constexpr std::uint64_t kNever = std::numeric_limits<std::uint64_t>::max();
constexpr auto kLongPatience = std::chrono::seconds(60);

class OwnedByFile : public Column::Owner {
 public:
  explicit OwnedByFile(std::shared_ptr<MappedFile> file) : file_(std::move(file)) {}
  void ensure(std::size_t bytes) override { file_->ensure(bytes); }

 private:
  std::shared_ptr<MappedFile> file_;
};

std::size_t checked_product(std::size_t rows, std::size_t row_bytes) {
  if (row_bytes != 0 && rows > std::numeric_limits<std::size_t>::max() / 4 / row_bytes) {
    throw Error("a column of " + std::to_string(rows) + " rows of " + std::to_string(row_bytes) +
                " bytes is too large");
  }
  return rows * row_bytes;
}

// Process numbers mean the same to processes of the same space only. 0: the system does not say.
std::uint64_t process_space() {
  struct stat status{};
  return stat("/proc/self/ns/pid", &status) == 0 ? status.st_ino : 0;
}

}  // namespace

// Forces everything to the disk again and again. An error waits for the next append.
class StoreFiles::Syncer {
 public:
  Syncer(StoreFiles& files, double seconds)
      : thread_([this, &files, seconds] {
          std::unique_lock lock(mutex_);
          while (!wake_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return stop_; })) {
            lock.unlock();
            try {
              files.sync_files();
            } catch (...) {
              const std::lock_guard failing(files.failing_);
              files.unraised_ = std::current_exception();
            }
            lock.lock();
          }
        }) {}
  ~Syncer() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    thread_.join();
  }

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false;
  std::thread thread_;  // last: it uses the others
};

StoreFiles::StoreFiles(std::string folder, StoreHeader header, const OpenOptions& options, bool create)
    : folder_(std::move(folder)),
      header_(std::move(header)),
      options_(options),
      create_(create),
      owner_(getpid()),
      kept_from_(kNever) {
  if (options_.write) {
    lock_ = WriterLock::take_patiently(folder_);
    if (!lock_) {
      const long holder = WriterLock::holder(folder_);
      // A reader that cannot write to the folder names nobody.
      throw FileError(
          EAGAIN, folder_,
          (holder == getpid() ? "this process writes to the store already"
           : holder == 0
               ? "another process writes to the store already, or reads it without the right to write"
               : "process " + std::to_string(holder) + " writes to the store already") +
              "; one can, others open it with mode='r'");
    }
    lock_->name_process();
  } else {
    lock_ =
        WriterLock::take(folder_);  // kept while the control block is put right; none where a writer is there
  }
  open_control();
  if (!create_) {
    StoreHeader now = read_header(folder_);  // it may have changed before the lock was taken
    if (!(now.capacity == header_.capacity && now.columns == header_.columns)) {
      throw Replaced(folder_ + ": another store has taken the place of this one; open it again");
    }
    header_ = std::move(now);
  }
}

StoreFiles::~StoreFiles() {
  if (getpid() != owner_) {
    (void)syncer_.release();  // its thread is in the parent
    return;
  }
  try {
    close();
  } catch (const std::exception&) {
    // The header still says that the store was in use: whoever opens it next looks closer.
  }
}

std::shared_ptr<MappedFile> StoreFiles::map(const std::string& name, std::size_t bytes, bool create) {
  const auto access = options_.write ? MappedFile::Access::kWrite : MappedFile::Access::kRead;
  return std::make_shared<MappedFile>(folder_ + "/" + name, bytes, access, create && options_.write);
}

void StoreFiles::open_control() {
  try {
    control_file_ = std::make_shared<MappedFile>(folder_ + "/range", sizeof(Control),
                                                 MappedFile::Access::kWrite, lock_.has_value());
    if (lock_) control_file_->ensure(sizeof(Control));
  } catch (const FileError& error) {
    const bool refused = error.code() == EACCES || error.code() == EROFS || error.code() == EPERM;
    if (options_.write || !refused) throw;
    // Without a place for its pins, a reader can only keep writers out.
    lock_.reset();
    try {
      lock_ = WriterLock::take(folder_, /*shared=*/true);
      if (!lock_) {
        throw FileError(error.code(), folder_ + "/range",
                        "a reader must write to it while process " +
                            std::to_string(WriterLock::holder(folder_)) + " writes to the store");
      }
    } catch (const FileError& second) {
      if (second.code() != EROFS && second.code() != ENOENT) throw;
    }
    own_control_ = std::make_unique<Control>();
    control_ = own_control_.get();
    return;
  }
  control_ = reinterpret_cast<Control*>(control_file_->data());
  if (!lock_) return;
  alone_ = control_file_->claim_alone();  // until the pins of the dead are gone: nobody may come in before
  if (!alone_) share_control();
  begin_recovery();
}

// Readers that come now wait until the control block is right again; see await_writer().
void StoreFiles::begin_recovery() {
  if (alone_) {
    control_->processes = process_space();
  } else {
    require_same_processes();
  }
  const std::uint64_t ready = control_->ready.load();
  was_ready_ = ready == Control::kReady || ready == Control::kOpening;
  control_->ready = was_ready_ ? Control::kOpening : 0;
}

void StoreFiles::require_same_processes() const {
  const std::uint64_t theirs = control_->processes.load(), own = process_space();
  if (theirs == 0 || own == 0 || theirs == own) return;
  throw Error(
      folder_ +
      " is open in processes whose numbers this one does not see: processes that share a store must see "
      "one another's process numbers, so run them in one container (one PID namespace)");
}

// Others are alone with the control block for as long as they put it right.
void StoreFiles::share_control() {
  const auto until = std::chrono::steady_clock::now() + kLongPatience;
  while (!control_file_->share()) {
    if (std::chrono::steady_clock::now() > until) {
      throw Error(folder_ + ": process " + std::to_string(WriterLock::holder(folder_)) +
                  " is opening the store and does not come to an end; try again later");
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

Column StoreFiles::column(const std::string& name, std::size_t rows, std::size_t row_bytes) {
  const std::size_t index = columns_.size();
  if (create_) {
    header_.columns.emplace_back(name, row_bytes);
  } else if (index >= header_.columns.size() ||
             header_.columns[index] != std::pair(name, std::uint64_t{row_bytes})) {
    throw Error(folder_ + ": column " + name +
                " has another layout; the store was written by another version");
  }
  const std::shared_ptr<MappedFile>& file =
      columns_.emplace_back(map(name, checked_product(rows, row_bytes), create_));
  const bool is_step = name.starts_with("steps.");
  (is_step ? step_columns_ : record_columns_).push_back(file);
  (is_step ? step_rows_ : record_rows_).push_back(row_bytes);
  return Column(std::make_unique<OwnedByFile>(file), file->data(), row_bytes);
}

// As Table lays out its columns.
void StoreFiles::make_groups(const Table& records) {
  Group small{"records.0", {}};
  std::vector<Group> large;
  std::size_t next = records.small().bytes > 0 ? 1 : 0;
  for (std::size_t f = 0; f < header_.schema.observations.size(); ++f) {
    const Cells& cells = records.field(f);
    if (cells.bytes > Table::kSmall) {
      large.push_back({"records." + std::to_string(next++), {cells}});
    } else {
      small.cells.push_back(cells);
    }
  }
  if (records.small().bytes > 0) groups_.push_back(std::move(small));
  for (Group& group : large) groups_.push_back(std::move(group));
}

void StoreFiles::start(const Table& steps, const Table& records, const StoreShape& shape) {
  shape_ = shape;
  std::size_t widest = 0;
  for (std::size_t f = 0; f < header_.schema.steps.size() + kMarkField + 1; ++f) {
    steps_.push_back(steps.field(f));
    widest = std::max(widest, steps_.back().bytes);
  }
  make_groups(records);
  journal_file_ = map("journal", checked_product(shape.rows, sizeof(JournalEntry)), create_);
  checksums_file_ =
      map("checksums", checked_product(shape.slots, groups_.size() * sizeof(std::uint32_t)), create_);
  levels_ = Column(shape.rows, sizeof(std::uint64_t));
  try {
    redo_file_ = map("redo", sizeof(Redo) + widest, true);
    if (options_.write) redo_file_->ensure(sizeof(Redo) + widest);
  } catch (const FileError&) {
    if (options_.write) throw;  // a reader can do without
  }
  // Files of two stores would be a mixture, where a snapshot has exchanged the folder in between.
  if (control_file_ != nullptr && !control_file_->in_place()) {
    throw Replaced(folder_ + ": another store has taken the place of this one; open it again");
  }
  if (lock_ || own_control_ != nullptr) {
    recover();
    if (alone_) share_control();
  } else {
    await_writer();
  }
  if (!options_.write) {
    own_drawing_.seed = header_.seed;
    own_drawing_.draws = header_.draws;
    if (own_control_ == nullptr) lock_.reset();
    if (control_->range.closed.load() != 0) finish_rewriting();
    if (options_.verify_all) verify_all();
    return;
  }
  if (options_.verify_all || power_failed_) verify_all();
  if (options_.sync == Sync::kEach) kept_from_ = control_->range.begin.load();
  save_header(/*closed=*/false, /*durable=*/false);
  started_ = true;
  if (options_.sync == Sync::kInterval) syncer_ = std::make_unique<Syncer>(*this, options_.sync_interval);
}

// A writer has the store open: it has put the control block right, or is about to.
void StoreFiles::await_writer() {
  share_control();
  const auto until = std::chrono::steady_clock::now() + kLongPatience;
  while (!control_file_->usable_at_least(sizeof(Control)) || control_->ready.load() != Control::kReady) {
    if (std::chrono::steady_clock::now() > until) {
      throw Error(folder_ + ": process " + std::to_string(WriterLock::holder(folder_)) +
                  " is opening the store for writing and does not come to an end; try again later");
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    if ((lock_ = WriterLock::take(folder_))) {  // it is gone
      control_file_->ensure(sizeof(Control));
      begin_recovery();
      return recover();
    }
  }
  require_same_processes();
}

void StoreFiles::save_header(bool closed, bool durable) {
  header_.seed = control_->drawing.seed;
  header_.draws = control_->drawing.draws;
  header_.end = control_->range.end;
  header_.closed = closed;
  header_.durable = durable;
  header_.boot = boot_id();
  write_header(folder_, header_);
}

void StoreFiles::require_writer() {
  if (!options_.write) {
    throw Error(folder_ +
                " was opened for reading (mode='r'); change it in the process that opened it for writing");
  }
  if (!is_owner()) {
    throw Error(
        folder_ + " is written by process " + std::to_string(owner_) +
        ", of which this one is a fork: it may sample; change the store there, or send it the transitions");
  }
  if (closed_) throw Error(folder_ + " was closed; open it again to change it");
  const std::lock_guard lock(failing_);
  if (std::exception_ptr error = std::exchange(unraised_, nullptr)) std::rethrow_exception(error);
}

bool StoreFiles::is_owner() const { return getpid() == owner_; }

void StoreFiles::leave_snapshot() {
  if (!header_.snapshot || create_) return;
  header_.snapshot = false;
  try {
    save_header(/*closed=*/false, /*durable=*/false);
  } catch (...) {
    header_.snapshot = true;
    throw;
  }
}

void StoreFiles::ensure(std::size_t rows, std::size_t slots) {
  leave_snapshot();
  journal_file_->ensure(rows * sizeof(JournalEntry));
  checksums_file_->ensure(slots * groups_.size() * sizeof(std::uint32_t));
}

void StoreFiles::appended(bool more) {
  if (options_.sync != Sync::kEach) return;
  if (more && ++unsynced_ < (shape_.rows - shape_.capacity) / 2) return;
  sync_files();
  unsynced_ = 0;
  kept_from_ = control_->range.begin.load();
}

void StoreFiles::restart(std::uint64_t first) { header_.base = first; }

std::size_t StoreFiles::column_bytes() const {
  std::size_t bytes = 0;
  for (const auto& column : columns_) {
    column->usable_at_least(std::numeric_limits<std::size_t>::max());  // looks at the file
    bytes += column->usable();
  }
  return bytes;
}

// The journal last, so that what it speaks of is on the disk more often than not.
void StoreFiles::sync_files() {
  for (const auto& column : columns_) force(*column);
  force(*checksums_file_);
  force(*journal_file_);
}

void StoreFiles::force(const MappedFile& file) {
  try {
    file.sync();
  } catch (...) {
    const std::lock_guard lock(failing_);
    if (!failure_) failure_ = std::current_exception();
    throw;
  }
}

std::exception_ptr StoreFiles::failure() const {
  const std::lock_guard lock(failing_);
  return failure_;
}

void StoreFiles::flush() {
  require_writer();
  sync_files();
  force(*redo_file_);
  // That it went well now does not bring back what an earlier attempt lost.
  if (std::exception_ptr error = failure()) std::rethrow_exception(error);
  save_header(/*closed=*/false, /*durable=*/false);
}

void StoreFiles::close() {
  if (closed_ || !started_ || !options_.write || !is_owner()) return;
  closed_ = true;
  syncer_.reset();
  try {
    sync_files();
    force(*redo_file_);
  } catch (...) {
    // failure() has it
  }
  std::exception_ptr error = failure();
  try {
    save_header(/*closed=*/true, /*durable=*/error == nullptr);
  } catch (...) {
    if (!error) error = std::current_exception();
  }
  lock_->release();
  if (error) std::rethrow_exception(error);
}

}  // namespace serl_fast
