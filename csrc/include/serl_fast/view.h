// What a batch holds: transitions, n-step returns or sequences.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "serl_fast/field.h"

namespace serl_fast {

// What stands in a sequence after the end of its episode.
enum class Pad {
  kNext,  // the steps stored next, of whatever episode; `valid` hides them
  kLast,  // the last step of the episode, again and again; nothing is added to its return
};

// How a step number becomes a row of a batch. `length` 0: one transition, from step s to step m, the last of
// the n_step steps s, s + 1, … of one episode, fewer where it ends, is interrupted or is not longer yet:
//
//   observations, actions, extras    of step s
//   rewards                          sum over k = 0 … m - s of discount^k · rewards[s + k]
//   next_observations, terminated, truncated, masks = 1 - terminated      of step m
//   discounts                        discount^(m - s + 1) · masks: what a TD target multiplies the value with
//
// `length` L: the steps at s, s + 1, …, s + L - 1, in the order in which they were stored (R. Li et al.,
// "Reinforcement learning with action chunking", 2025). Element k holds
//
//   full_observations, next_observations, actions, extras, terminated, truncated      of its step
//   next_actions                     of the step stored after it (of itself where it is the newest)
//   rewards                          sum over j <= k of discount^j · rewards[s + j]
//   masks                            the least of 1 - terminated up to k
//   terminals                        1 from the last step of the episode (or stretch) on, float32; the newest
//                                    step is the last one for a sequence that goes on after it
//   valid                            1 up to that step, 0 after it
//   discounts                        discount^(k + 1) · masks; with kLast the steps repeated do not count
//
// and `observations` are those of step s. Sums are made in double precision and kept as float32.
struct View {
  double discount = 0.99;
  std::size_t n_step = 1;
  std::size_t length = 0;
  Pad pad = Pad::kNext;

  // Throws Error for a discount outside [0, 1], n_step 0, or n_step above 1 together with a length.
  void validate() const;
  // The steps that a row may start at, of `size` live ones: all of them, or all but the last length - 1.
  std::size_t starts(std::size_t size) const;
};

// A column of a batch, whose rows are `rows()` times the row of `field`.
struct Output {
  enum class Kind {
    kObservation,       // field of the observation table
    kFullObservations,  // the same for every element of a sequence
    kNextObservation,
    kStep,
    kNextActions,
    kMasks,
    kDiscounts,
    kTerminals,
    kValid,
    kIds,      // the step numbers
    kWeights,  // of prioritised sampling
  };

  Kind kind;
  std::size_t index;   // of the table's field
  std::size_t repeat;  // elements per row of the batch: 1, or the length of a sequence
  bool sequence;       // whether a caller sees that axis
  Field field;         // name, dtype and shape of one element

  std::size_t row_bytes() const { return repeat * field.row_bytes(); }
};

// The columns of a batch. Every list of output columns that crosses the interface has this order:
//   transitions: observations, next observations, steps, masks, discounts, ids, weights
//   sequences:   observations, full observations, next observations, steps, next_actions (if there are
//                actions), masks, discounts, terminals, valid, ids, weights
struct Layout {
  // Throws Error for a view that cannot be.
  Layout(const Schema& schema, const View& view);

  View view;
  std::vector<Output> columns;
};

// Writes the step numbers into the column of kIds, if it is wanted.
void put_ids(const Layout& layout, std::span<const std::uint64_t> ids, std::span<std::byte* const> out);

}  // namespace serl_fast
