#include "serl_fast/worker_pool.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "serl_fast/error.h"
#include "serl_fast/forks.h"

#if defined(_MSC_VER) && (defined(_M_X64) || defined(_M_IX86))
#include <intrin.h>
#endif

namespace serl_fast {
namespace {

constexpr unsigned kMaxThreads = 256;
constexpr unsigned kDefaultThreads = 4;
constexpr int kSpins = 128;         // 2 to 6 microseconds, about what waking a thread costs its caller
constexpr std::size_t kApart = 64;  // a cache line for each word that several threads write

void relax() {
#if defined(__GNUC__) && (defined(__x86_64__) || defined(__i386__))
  __builtin_ia32_pause();
#elif defined(__GNUC__) && defined(__aarch64__)
  asm volatile("yield");
#elif defined(_MSC_VER) && (defined(_M_X64) || defined(_M_IX86))
  _mm_pause();
#endif
}

unsigned checked(unsigned threads) {
  if (threads >= 1 && threads <= kMaxThreads) return threads;
  throw Error("a pool of " + std::to_string(threads) + " threads; it can have 1 to " +
              std::to_string(kMaxThreads));
}

unsigned threads_from_environment() {
  const char* const text = std::getenv("SERL_FAST_THREADS");
  if (text == nullptr || *text == '\0') {
    return std::clamp(std::thread::hardware_concurrency(), 1U, kDefaultThreads);
  }
  const char* const end = text + std::strlen(text);
  unsigned threads = 0;
  const auto [rest, fault] = std::from_chars(text, end, threads);
  if (fault == std::errc() && rest == end && threads >= 1 && threads <= kMaxThreads) return threads;
  throw Error("SERL_FAST_THREADS is '" + std::string(text) + "'; it can be 1 to " +
              std::to_string(kMaxThreads));
}

}  // namespace

// The threads besides the caller's. One caller at a time.
//
// A run fills in the job, opens the door, tells the threads by a new call number, works on the tasks itself,
// closes the door when none is left and waits for those inside. A thread that wakes up too late finds the
// door closed: the run did not wait for it, and it touches nothing of the job, whose memory may be gone.
class WorkerPool::Crew {
 public:
  explicit Crew(unsigned threads) : threads_(threads), generation_(forks()) {
    workers_.reserve(threads - 1);
    try {
      while (workers_.size() + 1 < threads) workers_.emplace_back([this] { serve(); });
    } catch (...) {
      // The system gives no more of them; the tasks get done by those there are.
    }
  }

  ~Crew() {
    stop_.store(true, std::memory_order_relaxed);
    call_all();
    for (std::thread& worker : workers_) worker.join();
  }

  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;

  unsigned threads() const { return threads_; }  // that were asked for
  bool lives() const { return generation_ == forks(); }

  void run(std::size_t tasks, Call call, const void* work) {
    tasks_ = tasks;
    call_ = call;
    work_ = work;
    next_.store(0, std::memory_order_relaxed);
    failed_.store(false, std::memory_order_relaxed);
    door_.store(kOpen, std::memory_order_release);
    if (tasks - 1 < workers_.size()) {
      call_some(tasks - 1);
    } else {
      call_all();
    }
    take_tasks();
    door_.fetch_and(~kOpen, std::memory_order_relaxed);
    wait_until([](std::uint32_t inside) { return inside == 0; }, door_);
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

 private:
  static constexpr std::uint32_t kOpen = 0x80000000U;  // the other bits of the door: how many are inside

  // Returns the first value of `word` that is what was waited for.
  template <class Condition>
  static std::uint32_t wait_until(Condition condition, const std::atomic<std::uint32_t>& word) {
    std::uint32_t value = word.load(std::memory_order_acquire);
    for (int spin = 0; spin < kSpins && !condition(value); ++spin) {
      relax();
      value = word.load(std::memory_order_acquire);
    }
    while (!condition(value)) {
      word.wait(value, std::memory_order_acquire);
      value = word.load(std::memory_order_acquire);
    }
    return value;
  }

  void call_all() {
    calls_.fetch_add(1);
    calls_.notify_all();
  }

  void call_some(std::size_t workers) {
    calls_.fetch_add(1);
    for (std::size_t i = 0; i < workers; ++i) calls_.notify_one();
  }

  void serve() {
    for (std::uint32_t heard = 0;;) {
      heard = wait_until([heard](std::uint32_t calls) { return calls != heard; }, calls_);
      if (stop_.load(std::memory_order_relaxed)) return;
      if (!enter()) continue;
      take_tasks();
      // The last one out of a closed door.
      if (door_.fetch_sub(1, std::memory_order_acq_rel) == 1) door_.notify_one();
    }
  }

  bool enter() {
    std::uint32_t door = door_.load(std::memory_order_relaxed);
    while ((door & kOpen) != 0) {
      if (door_.compare_exchange_weak(door, door + 1, std::memory_order_acquire, std::memory_order_relaxed)) {
        return true;
      }
    }
    return false;
  }

  void take_tasks() {
    for (;;) {
      const std::size_t task = next_.fetch_add(1, std::memory_order_relaxed);
      if (task >= tasks_) return;
      try {
        call_(work_, task);
      } catch (...) {
        if (!failed_.exchange(true, std::memory_order_relaxed)) error_ = std::current_exception();
        next_.store(tasks_, std::memory_order_relaxed);
      }
    }
  }

  const unsigned threads_;
  const std::uint32_t generation_;

  // The job: written before the door opens, except for error_, which one of those inside writes.
  std::size_t tasks_ = 0;
  Call call_ = nullptr;
  const void* work_ = nullptr;
  std::exception_ptr error_;

  alignas(kApart) std::atomic<std::size_t> next_{0};
  std::atomic<bool> failed_{false};
  alignas(kApart) std::atomic<std::uint32_t> door_{0};
  alignas(kApart) std::atomic<std::uint32_t> calls_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

WorkerPool& WorkerPool::shared() {
  // At exit other threads may still use it, and threads cannot be joined everywhere then.
  static WorkerPool& pool = *new WorkerPool(threads_from_environment());
  return pool;
}

WorkerPool::WorkerPool(unsigned threads) : threads_(checked(threads)) {}

WorkerPool::~WorkerPool() {
  if (crew_ != nullptr && !crew_->lives()) (void)crew_.release();
}

void WorkerPool::resize(unsigned threads) { threads_.store(checked(threads), std::memory_order_relaxed); }

void WorkerPool::run_tasks(std::size_t tasks, Call call, const void* work) {
  if (!acquire()) {
    for (std::size_t task = 0; task < tasks; ++task) call(work, task);
    return;
  }
  struct Releaser {
    WorkerPool& pool;
    ~Releaser() { pool.release(); }
  } const releaser{*this};
  refit();
  if (crew_ != nullptr) {
    crew_->run(tasks, call, work);
  } else {
    for (std::size_t task = 0; task < tasks; ++task) call(work, task);
  }
}

// A user from before a fork is a thread that this process does not have.
bool WorkerPool::acquire() {
  const std::uint32_t mark = forks() + 1;
  std::uint32_t user = user_.load(std::memory_order_relaxed);
  return user != mark && user_.compare_exchange_strong(user, mark, std::memory_order_acquire);
}

void WorkerPool::release() { user_.store(0, std::memory_order_release); }

// The crew that the size asks for, in this process.
void WorkerPool::refit() {
  if (crew_ != nullptr && !crew_->lives()) (void)crew_.release();  // cannot be joined, so it is left behind
  const unsigned threads = this->threads();
  if (threads == (crew_ == nullptr ? 1 : crew_->threads())) return;
  crew_.reset();
  if (threads > 1) crew_ = std::make_unique<Crew>(threads);
}

}  // namespace serl_fast
