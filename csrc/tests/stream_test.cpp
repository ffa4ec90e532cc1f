#include "serl_fast/stream.h"

#include <atomic>
#include <chrono>
#include <cstring>
#include <limits>
#include <optional>
#include <stdexcept>
#include <thread>
#include <vector>

#if defined(__unix__)
#include <sys/wait.h>
#include <unistd.h>
#endif

#include "check.h"
#include "numbered.h"

using namespace serl_fast;
using namespace serl_fast::test;
using namespace std::chrono_literals;
using Shares = std::vector<double>;
using Lease = BatchStream::Lease;

namespace {

constexpr std::size_t kRows = 16;
constexpr double kNoLimit = -1;

// Two stores in halves, and a stream of them.
struct Rig {
  explicit Rig(int steps = 50, Order order = Order::kUniform)
      : a(numbered_store(0, steps)),
        b(numbered_store(100, steps)),
        from_a(*a, View{}, order, 0.4),
        from_b(*b, View{}, order, 0.4),
        mixture({&from_a, &from_b}, Shares{0.5, 0.5}, 1) {}

  BatchStream::Options options() const {
    BatchStream::Options made;
    made.rows = kRows;
    made.wanted.assign(mixture.layout().columns.size(), true);
    made.sources = true;
    return made;
  }

  std::unique_ptr<Store> a, b;
  Sampler from_a, from_b;
  Mixture mixture;
};

std::vector<float> rewards_of(const BatchStream& stream, const Lease& lease, const Layout& layout) {
  for (std::size_t c = 0; c < layout.columns.size(); ++c) {
    if (layout.columns[c].field.name != "rewards") continue;
    std::vector<float> values(kRows);
    std::memcpy(values.data(), lease.data() + stream.offsets()[c], kRows * sizeof(float));
    return values;
  }
  return {};
}

std::vector<float> drawn_directly(Rig& rig) {
  NumberedBatch batch(rig.mixture.layout(), kRows);
  rig.mixture.sample(kRows, batch.pointers, batch.sources.data());
  return batch.rewards();
}

template <typename Condition>
bool soon(Condition condition) {
  for (int i = 0; i < 60000 && !condition(); ++i) std::this_thread::sleep_for(1ms);
  return condition();
}

void batches_come_in_the_order_of_drawing() {
  for (const Order order : {Order::kUniform, Order::kEpoch}) {
    for (const unsigned threads : {1U, 3U}) {
      Rig rig(50, order), twin(50, order);
      BatchStream::Options options = rig.options();
      options.threads = threads;
      BatchStream stream(rig.mixture, options);
      for (std::uint64_t i = 0; i < 200; ++i) {
        const std::optional<Lease> lease = stream.next(kNoLimit);
        CHECK(lease->number() == i);
        CHECK(rewards_of(stream, *lease, rig.mixture.layout()) == drawn_directly(twin));
        const auto* sources = reinterpret_cast<const std::int32_t*>(lease->data() + stream.offsets().back());
        CHECK(sources[0] == 0 && sources[kRows - 1] == 1);
      }
    }
  }
}

void threads_sleep_while_no_slot_is_free() {
  Rig rig;
  BatchStream::Options options = rig.options();
  options.threads = 2;
  BatchStream stream(rig.mixture, options);
  CHECK(soon([&] { return rig.a->draws() == 4; }));
  std::this_thread::sleep_for(20ms);
  CHECK(rig.a->draws() == 4);
  stream.next(kNoLimit);  // given back at once
  std::this_thread::sleep_for(20ms);
  CHECK(rig.a->draws() == 4);  // nobody is woken for one slot of four
  stream.next(kNoLimit);
  CHECK(soon([&] { return rig.a->draws() == 6; }));
  std::this_thread::sleep_for(20ms);
  CHECK(rig.a->draws() == 6);
}

void a_batch_in_use_is_not_overwritten() {
  Rig rig;
  BatchStream stream(rig.mixture, rig.options());
  std::optional<Lease> kept = stream.next(kNoLimit);
  const std::vector<float> before = rewards_of(stream, *kept, rig.mixture.layout());
  for (int i = 0; i < 50; ++i) CHECK(stream.next(kNoLimit)->data() != kept->data());
  CHECK(rewards_of(stream, *kept, rig.mixture.layout()) == before);
  std::vector<Lease> all;
  for (int i = 0; i < 3; ++i) all.push_back(*stream.next(kNoLimit));
  CHECK_THROWS(stream.next(kNoLimit), std::runtime_error, "all 4 slots of the stream hold batches");
  all.pop_back();
  CHECK(stream.next(kNoLimit).has_value());
}

void an_empty_store_is_waited_for() {
  Rig rig(0);
  BatchStream stream(rig.mixture, rig.options());
  CHECK(!stream.next(0.0).has_value());
  CHECK(!stream.next(0.01).has_value());
  CHECK(soon([&] { return stream.waiting_for().starts_with("enough transitions"); }));
  append_number(*rig.b, 100);
  CHECK(stream.next(kNoLimit).has_value());
}

void closing_wakes_who_waits() {
  Rig rig(0);
  RateLimiter limiter({.min_size = 1, .samples_per_insert = 1, .slack = 1e9, .block_inserts = false});
  for (const bool limited : {false, true}) {
    BatchStream::Options options = rig.options();
    options.threads = 2;
    if (limited) {
      options.limiter = &limiter;
      append_number(*rig.a, 1);
    }
    BatchStream stream(rig.mixture, options);
    std::thread waiting(
        [&] { CHECK_THROWS(stream.next(kNoLimit), std::runtime_error, "the stream is closed"); });
    std::this_thread::sleep_for(10ms);
    stream.close();
    waiting.join();
    stream.close();
    CHECK(stream.closed());
    CHECK_THROWS(stream.next(0.0), std::runtime_error, "closed");
  }
}

void leases_outlive_the_stream() {
  Rig rig;
  std::optional<Lease> lease;
  {
    BatchStream stream(rig.mixture, rig.options());
    lease.emplace(*stream.next(kNoLimit));
  }
  lease->data()[0] = std::byte{1};
}

void what_stops_a_thread_is_thrown() {
  Rig rig;
  RateLimiter limiter({.min_size = 1, .samples_per_insert = 1, .slack = 4, .block_inserts = true});
  CHECK(limiter.insert(1, 0));
  BatchStream::Options options = rig.options();
  options.limiter = &limiter;
  options.threads = 3;
  BatchStream stream(rig.mixture, options);
  CHECK_THROWS(stream.next(kNoLimit), Error, "slack is 4");
  CHECK_THROWS(stream.next(kNoLimit), Error, "slack is 4");
}

void the_limiter_counts_what_is_handed_out() {
  Rig rig;
  RateLimiter limiter({.min_size = 4, .samples_per_insert = 8, .slack = 32, .block_inserts = false});
  BatchStream::Options options = rig.options();
  options.limiter = &limiter;
  BatchStream stream(rig.mixture, options);
  CHECK(!stream.next(0.01).has_value());
  limiter.insert(8, kNoLimit);  // 64 rows: four batches
  for (int i = 0; i < 4; ++i) CHECK(stream.next(kNoLimit).has_value());
  CHECK(!stream.next(0.05).has_value());
  CHECK(stream.waiting_for().starts_with("the rate limiter"));
  limiter.insert(4, kNoLimit);
  CHECK(soon([&] { return limiter.sampled() == 6 * kRows; }));
  stream.close();
  CHECK(limiter.sampled() == 4 * kRows);
}

void scheduled_shares_belong_to_their_batch() {
  Rig rig;
  BatchStream::Options options = rig.options();
  options.scheduled = true;
  options.threads = 3;
  BatchStream stream(rig.mixture, options);
  CHECK(!stream.next(0.01).has_value());
  CHECK_THROWS(stream.schedule(Shares{1}), Error, "2 stores have 1 shares");
  for (std::size_t from_a = 0; from_a <= kRows; ++from_a) {
    stream.schedule(Shares{static_cast<double>(from_a), static_cast<double>(kRows - from_a)});
  }
  for (std::size_t from_a = 0; from_a <= kRows; ++from_a) {
    CHECK((stream.next(kNoLimit)->counts() == std::vector<std::size_t>{from_a, kRows - from_a}));
  }
}

// The bound holds at the moment of handing out, while a writer laps the small store.
void no_batch_is_older_than_asked() {
  Rig rig;
  BatchStream::Options options = rig.options();
  options.max_behind = 5;
  options.threads = 2;
  BatchStream stream(rig.mixture, options);
  CHECK(soon([&] { return rig.a->draws() == 4; }));
  for (int i = 0; i < 6; ++i) append_number(*rig.a, 50);
  for (int i = 0; i < 8; ++i) CHECK(stream.next(kNoLimit)->appended()[0] >= 51);
  CHECK(stream.drawn_again() == 4);

  std::atomic<bool> done{false};
  std::thread writer([&] {
    for (int i = 0; !done; ++i) {
      append_number(*rig.a, static_cast<float>(i % 50));
      std::this_thread::sleep_for(10us);
    }
  });
  for (int i = 0; i < 300; ++i) {
    const std::uint64_t before = rig.a->appended();
    const std::optional<Lease> lease = stream.next(kNoLimit);
    CHECK(lease->appended()[0] + 5 >= before);
    for (const float reward : rewards_of(stream, *lease, rig.mixture.layout())) CHECK(reward < 150);
  }
  done = true;
  writer.join();
}

void several_consumers_get_every_batch_once() {
  Rig rig;
  BatchStream::Options options = rig.options();
  options.slots = 6;
  options.threads = 2;
  BatchStream stream(rig.mixture, options);
  std::vector<std::atomic<int>> seen(300);
  std::vector<std::thread> consumers;
  for (int c = 0; c < 3; ++c) {
    consumers.emplace_back([&] {
      for (int i = 0; i < 100; ++i) ++seen[stream.next(kNoLimit)->number()];
    });
  }
  for (std::thread& consumer : consumers) consumer.join();
  for (const auto& count : seen) CHECK(count == 1);
}

void impossible_streams() {
  Rig rig;
  const auto with = [&](auto change) {
    BatchStream::Options options = rig.options();
    change(options);
    BatchStream(rig.mixture, options);
  };
  CHECK_THROWS(with([](auto& o) { o.rows = 0; }), Error, "batch size is 0");
  CHECK_THROWS(with([](auto& o) { o.slots = 1; }), Error, "at least 2");
  CHECK_THROWS(with([](auto& o) { o.threads = 0; }), Error, "a stream of 0 threads");
  CHECK_THROWS(with([](auto& o) { o.wanted.pop_back(); }), Error, "marks for");
}

#if defined(__unix__)
void a_forked_child_is_told() {
  Rig rig;
  auto stream = std::make_unique<BatchStream>(rig.mixture, rig.options());
  std::optional<Lease> lease = stream->next(kNoLimit);
  const pid_t child = fork();
  if (child == 0) {
    serl_fast::test::failures = 0;
    CHECK_THROWS(stream->next(kNoLimit), std::runtime_error, "do not survive a fork");
    lease.reset();
    stream.reset();
    _exit(serl_fast::test::failures);
  }
  int status = 0;
  waitpid(child, &status, 0);
  CHECK(status == 0);
  lease.reset();
  CHECK(stream->next(kNoLimit).has_value());
}
#endif

}  // namespace

int main() {
  batches_come_in_the_order_of_drawing();
  threads_sleep_while_no_slot_is_free();
  a_batch_in_use_is_not_overwritten();
  an_empty_store_is_waited_for();
  closing_wakes_who_waits();
  leases_outlive_the_stream();
  what_stops_a_thread_is_thrown();
  the_limiter_counts_what_is_handed_out();
  scheduled_shares_belong_to_their_batch();
  no_batch_is_older_than_asked();
  several_consumers_get_every_batch_once();
  impossible_streams();
#if defined(__unix__) && !defined(__SANITIZE_THREAD__)  // TSan cannot go on in a child of several threads
  a_forked_child_is_told();
#endif
  return serl_fast::test::summary();
}
