#include "serl_fast/sampler.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "serl_fast/rng.h"

namespace serl_fast {
namespace {

double validated(double beta) {
  if (!(beta >= 0.0 && beta <= 1.0)) {
    throw Error("beta is " + std::to_string(beta) + "; it lies in [0, 1]");
  }
  return beta;
}

std::byte* column_of(const Layout& layout, Output::Kind kind, std::span<std::byte* const> out) {
  for (std::size_t c = 0; c < layout.columns.size(); ++c) {
    if (layout.columns[c].kind == kind) return out[c];
  }
  return nullptr;
}

// The steps that a row may start at; Error where there is none.
std::size_t starts(const Reading& reading, const View& view) {
  if (reading.size() == 0) throw Error("the store is empty; append a transition before sampling");
  const std::size_t count = view.starts(reading.size());
  if (count == 0) {
    throw Error("the store holds " + std::to_string(reading.size()) + " transitions; a sequence needs " +
                std::to_string(view.length));
  }
  return count;
}

}  // namespace

Sampler::Sampler(Store& store, const View& view, Order order, double beta)
    : store_(store), layout_(store.schema(), view), order_(order), beta_(validated(beta)) {
  if (order == Order::kPrioritized && store.priorities() == nullptr) {
    throw Error("the store keeps no priorities; call prioritize first");
  }
}

void Sampler::set_beta(double beta) { beta_ = validated(beta); }

void Sampler::sample(std::size_t rows, std::span<std::byte* const> out, std::optional<std::uint64_t> draw) {
  static thread_local std::vector<std::uint64_t> ids;
  ids.resize(rows);
  std::unique_lock<std::mutex> epoch;
  if (order_ == Order::kEpoch) epoch = std::unique_lock(epoch_mutex_);
  const Reading reading = store_.reading();
  const std::size_t count = starts(reading, layout_.view);
  auto* weights = reinterpret_cast<float*>(column_of(layout_, Output::Kind::kWeights, out));
  switch (order_) {
    case Order::kUniform:
      if (!draw) draw = store_.next_draw();
      uniform_indices(store_.seed(), *draw, count, ids);
      for (std::uint64_t& id : ids) id += reading.begin();
      if (store_.skips_damaged()) pass_over_damaged(reading, *draw, ids);
      break;
    case Order::kPrioritized:
      draw_prioritized(reading, draw ? *draw : store_.next_draw(), ids, weights);
      break;
    case Order::kEpoch:
      if (store_.skips_damaged()) good_from(reading, reading.begin());  // or the loop would not end
      for (std::size_t done = 0; done < rows;) {
        done += continue_epoch(reading, std::span(ids).subspan(done));
        if (done < rows) begin_epoch(reading);
      }
      // Nothing is left of it for sample_epoch().
      if (epoch_order_ && epoch_done_ == epoch_order_->bound()) epoch_order_.reset();
      epoch.unlock();
      break;
  }
  if (order_ != Order::kPrioritized && weights != nullptr) std::fill_n(weights, rows, 1.0F);
  store_.copy(reading, ids, layout_, out);
  put_ids(layout_, ids, out);
}

std::size_t Sampler::sample_epoch(std::size_t rows, std::span<std::byte* const> out) {
  std::vector<std::uint64_t> ids(rows);
  std::unique_lock lock(epoch_mutex_);
  const Reading reading = store_.reading();
  starts(reading, layout_.view);
  if (!epoch_order_) begin_epoch(reading);
  const std::size_t count = continue_epoch(reading, ids);
  if (count == 0) epoch_order_.reset();
  lock.unlock();
  ids.resize(count);
  auto* weights = reinterpret_cast<float*>(column_of(layout_, Output::Kind::kWeights, out));
  if (weights != nullptr) std::fill_n(weights, count, 1.0F);
  store_.copy(reading, ids, layout_, out);
  put_ids(layout_, ids, out);
  return count;
}

void Sampler::pass_over_damaged(const Reading& reading, std::uint64_t draw,
                                std::span<std::uint64_t> ids) const {
  constexpr std::uint32_t kAttempts = 64;  // then the next good one is taken: nearly everything is damaged
  const std::size_t count = starts(reading, layout_.view);
  store_.examine(reading, ids, layout_.view);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    std::uint32_t attempt = 0;
    while (!store_.is_good(reading, ids[i], layout_.view)) {
      if (attempt >= kAttempts) {
        ids[i] = good_from(reading, ids[i]);
      } else {
        ids[i] = reading.begin() + uniform_index(store_.seed(), draw, count, i, attempt);
      }
    }
  }
}

// The first start at `id` or after it, round to the oldest, that can be given out.
std::uint64_t Sampler::good_from(const Reading& reading, std::uint64_t id) const {
  const std::size_t count = starts(reading, layout_.view);
  for (std::size_t k = 0; k < count; ++k) {
    const std::uint64_t next = reading.begin() + (id - reading.begin() + k) % count;
    if (store_.is_good(reading, next, layout_.view)) return next;
  }
  const std::size_t steps = std::max(layout_.view.length, layout_.view.n_step);
  throw Error(steps > 1 ? "the store has no sequence of " + std::to_string(steps) +
                              " undamaged transitions; there is nothing to sample"
                        : "every transition of the store is damaged; there is nothing to sample");
}

void Sampler::begin_epoch(const Reading& reading) {
  epoch_order_.emplace(store_.seed(), store_.next_draw(), starts(reading, layout_.view));
  epoch_first_ = reading.begin();
  epoch_done_ = 0;
}

// The next steps of the epoch that are still live; fewer than asked for where it ends.
std::size_t Sampler::continue_epoch(const Reading& reading, std::span<std::uint64_t> ids) {
  // A loaded state may end before the epoch does.
  const std::uint64_t end = reading.begin() + layout_.view.starts(reading.size());
  std::size_t count = 0;
  while (count < ids.size() && epoch_order_ && epoch_done_ < epoch_order_->bound()) {
    const std::uint64_t id = epoch_first_ + (*epoch_order_)(epoch_done_++);
    if (id < reading.begin() || id >= end) continue;
    if (store_.skips_damaged() && !store_.is_good(reading, id, layout_.view)) continue;
    ids[count++] = id;
  }
  return count;
}

void Sampler::draw_prioritized(const Reading& reading, std::uint64_t draw, std::span<std::uint64_t> ids,
                               float* weights) const {
  std::vector<std::uint32_t> rows(ids.size());
  std::vector<double> masses(ids.size());
  Priorities& priorities = *store_.priorities();
  const std::lock_guard lock(priorities.mutex());
  priorities.draw(store_.seed(), draw, rows, masses);
  const std::uint64_t newest = reading.begin() + starts(reading, layout_.view) - 1;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    // A step that arrived after `reading` was taken is not held by it, and at the newest ones no whole
    // sequence starts: the last start stands in.
    ids[i] = std::clamp(store_.id_of(rows[i], store_.appended()), reading.begin(), newest);
    if (store_.skips_damaged() && !store_.is_good(reading, ids[i], layout_.view)) {
      priorities.remove(store_.row_of(ids[i]));
      ids[i] = good_from(reading, ids[i]);
    }
    // The weight is that of the step given out, unless it was given up since `reading` was taken.
    const auto row = static_cast<std::uint32_t>(store_.row_of(ids[i]));
    if (priorities.value(row) > 0.0F) rows[i] = row;
  }
  if (weights != nullptr) priorities.weights(rows, reading.size(), beta_, weights);
}

}  // namespace serl_fast
