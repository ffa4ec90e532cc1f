// How likely each step is drawn (Schaul et al., "Prioritized experience replay", ICLR 2016).
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>

#include "serl_fast/sum_tree.h"

namespace serl_fast {

struct PriorityOptions {
  double alpha = 0.6;     // P(i) = p_i^alpha / sum of all; 0: uniform. In [0, 1]
  double epsilon = 1e-6;  // p_i = |error_i| + epsilon, so that no step is lost for ever. Above 0
};

// The priority of every row of a store, kept as p^alpha. A new step gets the largest priority given so far (1
// before any was given). Internally locked: an append waits for the tree walk of one batch at most, a draw
// for one change of a leaf or one batch of them.
class Priorities {
 public:
  // Throws Error for options out of range.
  Priorities(const PriorityOptions& options, std::size_t rows);

  const PriorityOptions& options() const { return options_; }
  // Held by the store while a step appears or disappears, so that the tree and the live range agree.
  std::mutex& mutex() { return mutex_; }

  // Throws Error for one that is negative or not finite. Any time.
  void require_errors(std::span<const float> errors) const;

  // With the mutex held:
  void insert(std::size_t row) { tree_.set(row, largest_); }
  void remove(std::size_t row) { tree_.set(row, 0.0F); }
  // errors[i], which require_errors() let pass, belongs to rows[i].
  void update(std::span<const std::uint32_t> rows, std::span<const float> errors);
  // Rows drawn in proportion to their priorities, one from each of `rows.size()` equal parts of the total, as
  // in the paper: row i at total · (i + u_i) / rows.size(), with u_i from (seed, draw, i), 53 bits. The total
  // is above 0. `masses` is scratch of the same size.
  void draw(std::uint64_t seed, std::uint64_t draw, std::span<std::uint32_t> rows,
            std::span<double> masses) const;
  // weights[i] = (size · P(i))^-beta, divided by the largest of the batch.
  void weights(std::span<const std::uint32_t> rows, std::size_t size, double beta, float* weights) const;
  float value(std::size_t row) const { return tree_.value(row); }

 private:
  PriorityOptions options_;
  SumTree tree_;
  float largest_;  // p^alpha
  std::mutex mutex_;
};

}  // namespace serl_fast
