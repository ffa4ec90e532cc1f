#include "serl_fast/worker_pool.h"

#include <chrono>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.h"
#include "serl_fast/error.h"

#if defined(__unix__) || defined(__APPLE__)
#include <sys/wait.h>
#include <unistd.h>
#endif

using serl_fast::Error;
using serl_fast::WorkerPool;
using namespace std::chrono_literals;

namespace {

// arrive() returns whether all of `expected` threads came: only threads that run at the same time can meet.
class Meeting {
 public:
  explicit Meeting(int expected) : expected_(expected) {}
  bool arrive() {
    ++arrived_;
    const auto deadline = std::chrono::steady_clock::now() + 60s;
    while (arrived_ < expected_) {
      if (std::chrono::steady_clock::now() > deadline) return false;
      std::this_thread::sleep_for(100us);
    }
    return true;
  }

 private:
  const int expected_;
  std::atomic<int> arrived_{0};
};

bool runs_in(WorkerPool& pool, int threads) {
  Meeting meeting(threads);
  std::atomic<bool> met{true};
  pool.run(static_cast<std::size_t>(threads), [&](std::size_t) {
    if (!meeting.arrive()) met = false;
  });
  return met;
}

bool each_once(WorkerPool& pool, std::size_t tasks) {
  std::vector<int> counts(tasks);  // no atomics: one task, one thread, and run() hands over what it wrote
  pool.run(tasks, [&](std::size_t i) { ++counts[i]; });
  for (const int count : counts) {
    if (count != 1) return false;
  }
  return true;
}

void every_task_runs_once() {
  for (const unsigned threads : {1U, 2U, 3U, 8U}) {
    WorkerPool pool(threads);
    CHECK(pool.threads() == threads);
    for (std::size_t tasks = 0; tasks < 300; ++tasks) CHECK(each_once(pool, tasks));
    CHECK(each_once(pool, 20000));
  }
}

void threads_work_at_the_same_time() {
  WorkerPool pool(4);
  CHECK(runs_in(pool, 4));
  CHECK(runs_in(pool, 2));
  std::this_thread::sleep_for(5ms);  // by now they sleep
  CHECK(runs_in(pool, 4));
}

void one_thread_is_the_callers() {
  WorkerPool pool(1);
  bool here = true;
  const auto caller = std::this_thread::get_id();
  pool.run(100, [&](std::size_t) { here = here && std::this_thread::get_id() == caller; });
  CHECK(here);
}

// Runs that follow each other closely and with pauses: threads that come late must not enter the next run.
void short_runs_in_a_row() {
  WorkerPool pool(4);
  bool right = true;
  for (std::size_t run = 0; run < 20000; ++run) {
    std::vector<std::size_t> out(1 + run % 9);
    pool.run(out.size(), [&](std::size_t i) { out[i] = run + i; });
    for (std::size_t i = 0; i < out.size(); ++i) right = right && out[i] == run + i;
    if (run % 1000 == 0) std::this_thread::sleep_for(1ms);
  }
  CHECK(right);
}

void exceptions_come_back() {
  WorkerPool pool(4);
  int stopped = 0;  // whoever throws may be put aside until the others have done everything
  for (int repeat = 0; repeat < 200; ++repeat) {
    std::atomic<int> running{0};
    std::atomic<int> begun{0};
    CHECK_THROWS(pool.run(1000,
                          [&](std::size_t i) {
                            ++running;
                            ++begun;
                            if (i == 10) {
                              --running;
                              throw std::runtime_error("task 10");
                            }
                            std::this_thread::sleep_for(20us);
                            --running;
                          }),
                 std::runtime_error, "task 10");
    CHECK(running == 0);
    stopped += begun < 1000 ? 1 : 0;
  }
  CHECK(stopped > 100);
  CHECK_THROWS(pool.run(50, [](std::size_t) { throw std::runtime_error("every task"); }), std::runtime_error,
               "every task");
  CHECK(each_once(pool, 1000));  // it goes on as before
  WorkerPool alone(1);
  CHECK_THROWS(alone.run(2, [](std::size_t) { throw std::runtime_error("inline"); }), std::runtime_error,
               "inline");
  CHECK_THROWS(pool.run(1, [](std::size_t) { throw std::runtime_error("single"); }), std::runtime_error,
               "single");
  CHECK(runs_in(alone, 1));
}

// The second caller is done while the first one, which waits for it, still has the pool.
void nobody_waits_for_a_stranger() {
  WorkerPool pool(2);
  Meeting inside(3);
  Meeting done(3);
  bool equal = false;
  std::thread stranger([&] {
    CHECK(inside.arrive());
    equal = each_once(pool, 100);
    CHECK(done.arrive());
  });
  pool.run(2, [&](std::size_t) {
    CHECK(inside.arrive());
    CHECK(done.arrive());
  });
  stranger.join();
  CHECK(equal);
}

void concurrent_callers() {
  WorkerPool pool(3);
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&] {
      for (std::size_t repeat = 0; repeat < 2000; ++repeat) {
        if (!each_once(pool, 1 + repeat % 40)) ++wrong;
      }
    });
  }
  for (int repeat = 0; repeat < 200; ++repeat) pool.resize(1 + static_cast<unsigned>(repeat) % 4);
  for (std::thread& caller : callers) caller.join();
  CHECK(wrong == 0);
}

void nested_runs() {
  WorkerPool pool(3);
  std::vector<int> counts(30 * 30);
  pool.run(30, [&](std::size_t i) { pool.run(30, [&](std::size_t k) { ++counts[i * 30 + k]; }); });
  CHECK(counts == std::vector<int>(30 * 30, 1));
}

void any_callable() {
  WorkerPool pool(2);
  struct Counter {
    std::atomic<int>& count;
    void operator()(std::size_t) { ++count; }
  };
  std::atomic<int> count{0};
  Counter counter{count};
  pool.run(10, counter);
  pool.run(10, Counter{count});
  const auto constant = [&count](std::size_t) { ++count; };
  pool.run(10, constant);
  CHECK(count == 30);
}

void resize_takes_effect_at_the_next_run() {
  WorkerPool pool(1);
  for (const unsigned threads : {4U, 2U, 1U, 6U}) {
    pool.resize(threads);
    CHECK(pool.threads() == threads);
    CHECK(runs_in(pool, static_cast<int>(threads)));
    CHECK(each_once(pool, 100));
  }
  pool.run(4, [&](std::size_t) { pool.resize(2); });  // even from within
  CHECK(runs_in(pool, 2));
  CHECK_THROWS(pool.resize(0), Error, "a pool of 0 threads; it can have 1 to 256");
  CHECK_THROWS(WorkerPool(257), Error, "a pool of 257 threads");
  CHECK(pool.threads() == 2);
}

#if defined(__unix__) || defined(__APPLE__)

void set_threads_variable(const char* value) { setenv("SERL_FAST_THREADS", value, 1); }

// The pool of the process is made at the first success, so refusals come first.
void shared_pool_has_the_size_of_the_environment() {
  for (const char* const wrong : {"0", "many", "3x", "-1", "257", "99999999999999", " 2"}) {
    set_threads_variable(wrong);
    CHECK_THROWS(WorkerPool::shared(), Error, "it can be 1 to 256");
  }
  set_threads_variable("3");
  CHECK(WorkerPool::shared().threads() == 3);
  CHECK(&WorkerPool::shared() == &WorkerPool::shared());
  CHECK(runs_in(WorkerPool::shared(), 3));
}

// The sanitizer for threads does not allow new ones in a child of a process that has several.
#if !defined(__SANITIZE_THREAD__)

// Whether `body` returned true in a child. A child that hangs is ended by the alarm.
template <class Body>
bool in_child(Body body) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    _exit(body() ? 0 : 1);
  }
  int status = -1;
  return waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

void forked_children() {
  auto pool = std::make_unique<WorkerPool>(3);
  CHECK(runs_in(*pool, 3));
  const auto works = [&] { return runs_in(*pool, 3) && each_once(*pool, 1000); };
  CHECK(in_child(works));
  CHECK(in_child([&] { return works() && in_child(works) && works(); }));
  CHECK(in_child([&] {
    pool->resize(2);
    return runs_in(*pool, 2);
  }));
  CHECK(in_child([&] {
    pool.reset();  // nobody to join
    return true;
  }));
  CHECK(in_child([&] {
    const bool worked = works();
    pool.reset();
    return worked;
  }));
  CHECK(works());  // nothing of it reached the parent
}

// The thread that has the pool does not exist in the child.
void forked_while_another_thread_runs() {
  WorkerPool pool(2);
  Meeting inside(3);
  Meeting done(3);
  std::thread other([&] {
    pool.run(2, [&](std::size_t) {
      CHECK(inside.arrive());
      CHECK(done.arrive());
    });
  });
  CHECK(inside.arrive());
  CHECK(in_child([&] { return runs_in(pool, 2) && each_once(pool, 100); }));
  CHECK(done.arrive());
  other.join();
  CHECK(runs_in(pool, 2));
}

#endif
#endif

}  // namespace

int main() {
#if defined(__unix__) || defined(__APPLE__)
  shared_pool_has_the_size_of_the_environment();
#if !defined(__SANITIZE_THREAD__)
  forked_children();
  forked_while_another_thread_runs();
#endif
#endif
  every_task_runs_once();
  threads_work_at_the_same_time();
  one_thread_is_the_callers();
  short_runs_in_a_row();
  exceptions_come_back();
  nobody_waits_for_a_stranger();
  concurrent_callers();
  nested_runs();
  any_callable();
  resize_takes_effect_at_the_next_run();
  return serl_fast::test::summary();
}
