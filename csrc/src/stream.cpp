#include "serl_fast/stream.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <utility>

#if defined(_WIN32)
#include <process.h>
#else
#include <unistd.h>
#endif

namespace serl_fast {
namespace {

constexpr std::size_t kAlignment = 64;
constexpr std::size_t kPage = 4096;
constexpr unsigned kMaxThreads = 64;
constexpr double kForever = 1e9;  // seconds; beyond this clocks overflow
// How often to look whether a store has got enough; and how long close() may have to wait for the limiter.
constexpr std::chrono::milliseconds kLook{2};
constexpr double kLimiterSlice = 0.02;

std::size_t round_up(std::size_t value, std::size_t unit) { return (value + unit - 1) / unit * unit; }

long process() {
#if defined(_WIN32)
  return _getpid();
#else
  return static_cast<long>(getpid());
#endif
}

}  // namespace

struct BatchStream::Slot {
  enum class State { kFree, kFilling, kReady, kLeased };

  std::byte* data = nullptr;
  std::vector<std::byte*> columns{};  // null where not wanted
  std::int32_t* sources = nullptr;
  State state = State::kFree;
  std::uint64_t number = 0;
  std::vector<double> shares{};  // of a scheduled stream
  Mixture::Plan plan{};
};

// What leases and threads share. A slot's state is guarded by `mutex`; the rest of it belongs to whoever took
// it from one state to the next.
struct BatchStream::Ring {
  Ring(std::size_t count, std::size_t slot_bytes)
      : memory(1, count * slot_bytes), bytes(count * slot_bytes), slots(count) {}

  Slot* find(Slot::State state) {
    const auto found =
        std::find_if(slots.begin(), slots.end(), [=](const Slot& s) { return s.state == state; });
    return found == slots.end() ? nullptr : &*found;
  }
  Slot* next_ready() {
    const auto is_next = [this](const Slot& s) {
      return s.state == Slot::State::kReady && s.number == taken;
    };
    const auto found = std::find_if(slots.begin(), slots.end(), is_next);
    return found == slots.end() ? nullptr : &*found;
  }
  std::size_t count(Slot::State state) const {
    const auto is = [=](const Slot& s) { return s.state == state; };
    return static_cast<std::size_t>(std::count_if(slots.begin(), slots.end(), is));
  }
  // Waking a thread costs as much as a small batch: while batches are ready, only for half of the slots at
  // once.
  bool worth_waking() const {
    return 2 * count(Slot::State::kFree) >= slots.size() || count(Slot::State::kReady) == 0;
  }

  const long owner = process();
  Column memory;
  const std::size_t bytes;

  std::mutex mutex;                // guards what follows
  std::condition_variable freed;   // a slot is free, shares were named, or the stream ends
  std::condition_variable filled;  // a batch is ready, or the stream ends
  std::vector<Slot> slots;
  std::deque<std::vector<double>> scheduled;
  std::uint64_t drawn = 0;  // batches begun
  std::uint64_t taken = 0;  // batches handed out
  std::uint64_t drawn_again = 0;
  std::string waiting_for;
  std::exception_ptr failure;
  bool closed = false;
};

// --- leases ------------------------------------------------------------------------------------------------

BatchStream::Lease::~Lease() {
  if (ring_ == nullptr || ring_->owner != process()) return;
  bool wake = false;
  {
    const std::lock_guard lock(ring_->mutex);
    slot_->state = Slot::State::kFree;
    wake = ring_->worth_waking();
  }
  if (wake) ring_->freed.notify_all();
}

std::uint64_t BatchStream::Lease::number() const { return slot_->number; }
std::byte* BatchStream::Lease::data() const { return slot_->data; }
const std::vector<std::uint64_t>& BatchStream::Lease::appended() const { return slot_->plan.appended; }
const std::vector<std::size_t>& BatchStream::Lease::counts() const { return slot_->plan.counts; }

// --- the stream --------------------------------------------------------------------------------------------

BatchStream::BatchStream(Mixture& mixture, Options options)
    : mixture_(mixture), options_(std::move(options)) {
  const std::vector<Output>& columns = mixture.layout().columns;
  if (options_.rows == 0) throw Error("the batch size is 0; it is at least 1");
  if (options_.slots < 2)
    throw Error("a stream of " + std::to_string(options_.slots) + " slots; it has at least 2");
  if (options_.threads < 1 || options_.threads > kMaxThreads) {
    throw Error("a stream of " + std::to_string(options_.threads) + " threads; it has 1 to " +
                std::to_string(kMaxThreads));
  }
  if (options_.wanted.size() != columns.size()) {
    throw Error("got " + std::to_string(options_.wanted.size()) + " marks for " +
                std::to_string(columns.size()) + " columns");
  }
  for (std::size_t c = 0; c < columns.size(); ++c) {
    offsets_.push_back(slot_bytes_);
    if (options_.wanted[c]) slot_bytes_ += round_up(options_.rows * columns[c].row_bytes(), kAlignment);
  }
  offsets_.push_back(slot_bytes_);
  if (options_.sources) slot_bytes_ += options_.rows * sizeof(std::int32_t);
  slot_bytes_ = round_up(std::max<std::size_t>(slot_bytes_, 1), kPage);

  ring_ = std::make_shared<Ring>(options_.slots, slot_bytes_);
  for (std::size_t s = 0; s < options_.slots; ++s) {
    Slot& slot = ring_->slots[s];
    slot.data = ring_->memory.data() + s * slot_bytes_;
    for (std::size_t c = 0; c < columns.size(); ++c) {
      slot.columns.push_back(options_.wanted[c] ? slot.data + offsets_[c] : nullptr);
    }
    if (options_.sources) slot.sources = reinterpret_cast<std::int32_t*>(slot.data + offsets_.back());
  }
  try {
    for (unsigned t = 0; t < options_.threads; ++t) threads_.emplace_back([this] { fill_slots(); });
  } catch (...) {  // the system gives no more threads
    close();
    throw;
  }
}

BatchStream::~BatchStream() {
  if (ring_->owner == process()) {
    close();
    return;
  }
  // In a forked child: the threads cannot be joined, and what they waited for cannot be destroyed.
  new std::shared_ptr<Ring>(ring_);
  new std::vector<std::thread>(std::move(threads_));
}

void BatchStream::require_process() const {
  if (ring_->owner == process()) return;
  throw std::runtime_error(
      "the stream belongs to the process that made it, and its threads do not survive a fork; "
      "make another one here");
}

void BatchStream::close() {
  require_process();
  const std::lock_guard closing(closing_);
  {
    const std::lock_guard lock(ring_->mutex);
    ring_->closed = true;
  }
  ring_->freed.notify_all();
  ring_->filled.notify_all();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
  const std::lock_guard lock(ring_->mutex);
  for (Slot& slot : ring_->slots) {
    if (slot.state != Slot::State::kReady) continue;
    slot.state = Slot::State::kFree;
    if (options_.limiter == nullptr) continue;
    try {
      options_.limiter->undo_sample(options_.rows);
    } catch (const Error&) {
      // Its counts were set anew since: they do not hold these rows.
    }
  }
}

bool BatchStream::closed() const {
  require_process();
  const std::lock_guard lock(ring_->mutex);
  return ring_->closed;
}

std::string BatchStream::waiting_for() const {
  require_process();
  const std::lock_guard lock(ring_->mutex);
  return ring_->waiting_for;
}

std::uint64_t BatchStream::drawn_again() const {
  require_process();
  const std::lock_guard lock(ring_->mutex);
  return ring_->drawn_again;
}

std::byte* BatchStream::memory() const { return ring_->memory.data(); }
std::size_t BatchStream::memory_bytes() const { return ring_->bytes; }

void BatchStream::schedule(std::span<const double> shares) {
  require_process();
  require_shares(shares, mixture_.sources());
  {
    const std::lock_guard lock(ring_->mutex);
    ring_->scheduled.emplace_back(shares.begin(), shares.end());
  }
  ring_->freed.notify_all();
}

std::optional<BatchStream::Lease> BatchStream::next(double timeout) {
  require_process();
  Ring& ring = *ring_;
  std::unique_lock lock(ring.mutex);
  Slot* slot = nullptr;
  const auto decided = [&] {
    slot = ring.next_ready();
    return slot != nullptr || ring.closed || ring.failure != nullptr ||
           ring.count(Slot::State::kLeased) == ring.slots.size();
  };
  if (timeout < 0 || timeout > kForever) {
    ring.filled.wait(lock, decided);
  } else if (!ring.filled.wait_for(lock, std::chrono::duration<double>(timeout), decided)) {
    return std::nullopt;
  }
  if (ring.failure != nullptr) std::rethrow_exception(ring.failure);
  if (ring.closed) throw std::runtime_error("the stream is closed");
  if (slot == nullptr) {
    throw std::runtime_error("all " + std::to_string(ring.slots.size()) +
                             " slots of the stream hold batches that are "
                             "still in use; copy what is kept, or give the stream more slots");
  }
  slot->state = Slot::State::kLeased;
  ++ring.taken;
  Lease lease(ring_, *slot);
  if (ring.worth_waking()) ring.freed.notify_all();
  if (options_.max_behind && too_old(*slot)) {
    ++ring.drawn_again;
    lock.unlock();
    draw(*slot);
  } else {
    lock.unlock();
  }
  ring.filled.notify_all();  // another consumer may wait for the batch after this one
  return lease;
}

bool BatchStream::too_old(const Slot& slot) const {
  for (std::size_t i = 0; i < mixture_.sources(); ++i) {
    if (mixture_.store(i).appended() - slot.plan.appended[i] > *options_.max_behind) return true;
  }
  return false;
}

// --- the threads -------------------------------------------------------------------------------------------

void BatchStream::fill_slots() {
  try {
    while (fill_one()) {
    }
  } catch (...) {
    fail();
  }
}

void BatchStream::fail() {
  {
    const std::lock_guard lock(ring_->mutex);
    if (ring_->failure == nullptr) ring_->failure = std::current_exception();
  }
  ring_->freed.notify_all();
  ring_->filled.notify_all();
}

// Draws the next batch; false where the stream ends.
bool BatchStream::fill_one() {
  std::unique_lock order(order_);
  Slot* const slot = free_slot();
  if (slot == nullptr || !wait_for_rows(slot->shares) || !wait_for_limiter()) return false;
  try {
    mixture_.plan(options_.rows, slot->plan, slot->shares);
    {
      const std::lock_guard lock(ring_->mutex);
      slot->number = ring_->drawn++;
      ring_->waiting_for.clear();
    }
    if (!mixture_.in_order()) order.unlock();
    mixture_.fill(slot->plan, slot->columns, slot->sources);
  } catch (...) {
    if (options_.limiter != nullptr) options_.limiter->undo_sample(options_.rows);
    throw;
  }
  {
    const std::lock_guard lock(ring_->mutex);
    slot->state = Slot::State::kReady;
  }
  ring_->filled.notify_all();
  return true;
}

void BatchStream::draw(Slot& slot) {
  mixture_.plan(options_.rows, slot.plan, slot.shares);
  mixture_.fill(slot.plan, slot.columns, slot.sources);
}

// A slot for the next batch, and its shares; null where the stream ends.
BatchStream::Slot* BatchStream::free_slot() {
  Ring& ring = *ring_;
  std::unique_lock lock(ring.mutex);
  Slot* slot = nullptr;
  ring.freed.wait(lock, [&] {
    if (ring.closed || ring.failure != nullptr) return true;
    if (options_.scheduled && ring.scheduled.empty()) return false;
    slot = ring.find(Slot::State::kFree);
    return slot != nullptr;
  });
  if (ring.closed || ring.failure != nullptr) return nullptr;
  slot->state = Slot::State::kFilling;
  if (options_.scheduled) {
    slot->shares = std::move(ring.scheduled.front());
    ring.scheduled.pop_front();
  }
  return slot;
}

bool BatchStream::wait_for_rows(std::span<const double> shares) {
  Ring& ring = *ring_;
  while (!mixture_.ready(shares)) {
    std::unique_lock lock(ring.mutex);
    ring.waiting_for = "enough transitions in a store that has a share";
    const auto over = [&] { return ring.closed || ring.failure != nullptr; };
    if (ring.freed.wait_for(lock, kLook, over)) return false;
  }
  return true;
}

bool BatchStream::wait_for_limiter() {
  if (options_.limiter == nullptr) return true;
  Ring& ring = *ring_;
  for (double wait = 0.0; !options_.limiter->sample(options_.rows, wait); wait = kLimiterSlice) {
    if (options_.limiter->closed()) throw std::runtime_error("the rate limiter is closed");
    const std::lock_guard lock(ring.mutex);
    if (ring.closed || ring.failure != nullptr) return false;
    ring.waiting_for = "the rate limiter, which lets no more samples pass before further inserts";
  }
  return true;
}

}  // namespace serl_fast
