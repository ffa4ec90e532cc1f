// Threads that share out the rows of a gather.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>

namespace serl_fast {

// A few threads, the calling one among them. They start at the first run, wait asleep between runs and take
// tasks one by one, so that a thread that the system holds up delays no more than the task it has. Any thread
// may use a pool. A forked child may too: the threads do not survive a fork, it gets its own.
class WorkerPool {
 public:
  // The pool of the process. Its size is the environment variable SERL_FAST_THREADS, by default the number of
  // cores, at most 4. Throws Error for a value that is no size. Never destroyed: its threads end with the
  // process.
  static WorkerPool& shared();

  // `threads` in all, the caller included; 1: none of its own. Throws Error where it is not within 1 ... 256.
  explicit WorkerPool(unsigned threads);
  ~WorkerPool();  // nobody may be running anything in it
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  unsigned threads() const { return threads_.load(std::memory_order_relaxed); }
  // From the next run on. Throws Error like the constructor.
  void resize(unsigned threads);

  // Calls work(i) once for every i < tasks, in any order, here and in the pool's threads; returns when all
  // are done. An exception of work is rethrown here, the first one if there are several; tasks that had not
  // begun are left out then, none runs on. Where another caller has the pool, or work itself calls run, all
  // of it runs in the calling thread: nobody waits for a stranger's work. Allocates nothing but the threads
  // of the first run. work must not fork.
  template <class Work>
  void run(std::size_t tasks, Work&& work) {
    using Target = std::remove_reference_t<Work>;
    if (tasks <= 1) {
      if (tasks == 1) work(std::size_t{0});
      return;
    }
    const auto call = [](const void* target, std::size_t task) {
      (*static_cast<Target*>(const_cast<void*>(target)))(task);
    };
    run_tasks(tasks, call, std::addressof(work));
  }

 private:
  using Call = void (*)(const void* work, std::size_t task);
  class Crew;

  void run_tasks(std::size_t tasks, Call call, const void* work);
  bool acquire();
  void release();
  void refit();

  std::atomic<unsigned> threads_;
  std::atomic<std::uint32_t> user_{0};  // 0: nobody; otherwise in which generation of forks it was acquired
  std::unique_ptr<Crew> crew_;          // of the one who acquired the pool
};

}  // namespace serl_fast
