// One batch from several stores.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

#include "serl_fast/sampler.h"

namespace serl_fast {

// Throws Error unless there is one share per source, all finite, none negative, not all 0.
void require_shares(std::span<const double> shares, std::size_t sources);

// How many of `rows` rows each source gives: its share of them by the largest remainder. Every source gets
// the whole part of share / total * rows; the rows left over go to the largest fractional parts, among equals
// to the first. Integer arithmetic, so that equal remainders are equal: shares are rounded to a multiple of a
// power of two, at most 2^-58 of the largest for up to 15 sources. The shares are not all 0.
std::vector<std::size_t> largest_remainders(std::span<const double> shares, std::size_t rows);

// Draws every batch from several samplers in shares. The rows of the first one come first; all write into
// their part of the same columns. A source that holds fewer than min_size rows to start at (transitions, or
// whole sequences) takes no part, and its share goes to the others in proportion to theirs.
//
// Any thread at any time. The samplers outlive the mixture.
class Mixture {
 public:
  // What a batch is made of. Two plans in turn, filled by two threads, give what one thread would have drawn.
  struct Plan {
    std::vector<std::size_t> counts;      // rows, per source
    std::vector<std::uint64_t> draws;     // draw number of the source's store; none for 0 rows and kEpoch
    std::vector<std::uint64_t> appended;  // steps its store had ever stored: what the draw knows at least
  };

  // Throws Error: no sampler, columns that differ (the message names one), shares or min_size that cannot be.
  Mixture(std::vector<Sampler*> samplers, std::span<const double> shares, std::size_t min_size);

  const Layout& layout() const { return samplers_.front()->layout(); }
  std::size_t sources() const { return samplers_.size(); }
  const Store& store(std::size_t source) const { return samplers_[source]->store(); }
  bool in_order() const { return in_order_; }  // plans must be filled in the order in which they were made
  std::vector<double> shares() const;
  void set_shares(std::span<const double> shares);  // of the batches planned from now on

  // Whether a source with a share holds enough. Without `shares`, here and below: those of the mixture.
  bool ready(std::span<const double> shares = {}) const;
  // Rows from each source in a batch drawn now. Throws Error where not ready.
  std::vector<std::size_t> counts(std::size_t rows, std::span<const double> shares = {}) const;

  // plan, then fill. `sources`: null, or where the number of its source goes for every row.
  void sample(std::size_t rows, std::span<std::byte* const> out, std::int32_t* sources);
  // Uses up a draw number of each store that takes part. Throws Error where not ready.
  void plan(std::size_t rows, Plan& plan, std::span<const double> shares = {});
  void fill(const Plan& plan, std::span<std::byte* const> out, std::int32_t* sources);

 private:
  std::size_t held(std::size_t source) const;
  // The shares of those that hold enough, 0 for the others; all 0 where nobody does.
  std::vector<double> effective(std::span<const double> shares) const;

  const std::vector<Sampler*> samplers_;
  const std::size_t min_size_;
  bool in_order_ = false;
  mutable std::mutex mutex_;  // of shares_; and a plan takes all its draw numbers at once
  std::vector<double> shares_;
};

}  // namespace serl_fast
