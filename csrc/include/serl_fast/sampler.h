// Which steps a batch is made of.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "serl_fast/permutation.h"
#include "serl_fast/store.h"
#include "serl_fast/view.h"

namespace serl_fast {

enum class Order {
  kUniform,      // each step as likely as any other, with replacement
  kPrioritized,  // by Store::priorities, with importance weights
  kEpoch,        // every step once in an order by chance, then again in another one
};

// Draws batches of a fixed layout from one store. The steps depend on the store's seed, on how many draws the
// store has made, and on its contents. Any thread at any time; only draws of kEpoch wait for one another.
class Sampler {
 public:
  // beta: exponent of the importance weights, in [0, 1]. The store outlives the sampler. Throws Error for
  // settings that cannot be; kPrioritized needs Store::prioritize first.
  Sampler(Store& store, const View& view, Order order, double beta);

  const Layout& layout() const { return layout_; }
  Store& store() const { return store_; }
  Order order() const { return order_; }
  void set_beta(double beta);  // annealed towards 1 as training goes on

  // Draws `rows` rows into columns of the layout, a null one left out. Uses up one draw number of the store,
  // or the one given, which next_draw() returned before.
  // kEpoch: an epoch holds the steps live at its start; steps given up meanwhile are passed over. Epochs use
  // up draw numbers, not batches: none can be given.
  // Damaged steps are passed over where the store says so: a uniform draw takes the next attempt.
  // Throws Error where the store holds no step (or no whole sequence).
  void sample(std::size_t rows, std::span<std::byte* const> out, std::optional<std::uint64_t> draw = {});
  // What is left of the epoch at hand, at most `rows`; 0: it is over, and the next call begins another one.
  std::size_t sample_epoch(std::size_t rows, std::span<std::byte* const> out);

 private:
  void draw_prioritized(const Reading& reading, std::uint64_t draw, std::span<std::uint64_t> ids,
                        float* weights) const;
  // Steps of a store in files that cannot be given out are replaced by others, or an Error where all are
  // such.
  void pass_over_damaged(const Reading& reading, std::uint64_t draw, std::span<std::uint64_t> ids) const;
  std::uint64_t good_from(const Reading& reading, std::uint64_t id) const;
  void begin_epoch(const Reading& reading);
  std::size_t continue_epoch(const Reading& reading, std::span<std::uint64_t> ids);

  Store& store_;
  const Layout layout_;
  const Order order_;
  std::atomic<double> beta_;

  std::mutex epoch_mutex_;
  std::optional<Permutation> epoch_order_;  // of the steps that it holds; none before the first epoch
  std::uint64_t epoch_first_ = 0;           // its first step
  std::uint64_t epoch_done_ = 0;            // places of the order that were taken
};

}  // namespace serl_fast
