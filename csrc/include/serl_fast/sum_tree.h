// The sum tree of prioritised sampling: find the leaf under a given share of the total, change leaves.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "serl_fast/column.h"

namespace serl_fast {

// Schaul et al., "Prioritized experience replay", ICLR 2016, appendix B.2, with 16 float32 children to a
// node, one cache line, in place of 2: a million leaves are 5 lines deep, not 20. Leaves start at 0 and cost
// no memory until they are set. Not synchronised: const functions may run at the same time, set() alone.
//
// What it computes is defined to the bit, so that it can be repeated elsewhere (no flush-to-zero mode):
//
//   sum    of a node = 0.0f + child 0 + child 1 + ... + child 15, added in this order in float32. It is
//          always computed anew from the children, never corrected by a difference, so nothing drifts.
//          Children beyond the last leaf are 0.
//   total  = 0.0 + child 0 + ... + child 15 of the root, added in this order in double.
//   find   mass > 0 or else 0, in double. At each node, from the root down, with `last` = its last child that
//          is not 0 (child 0 if all are): for child 0, 1, ... before `last`, in this order, go down into the
//          first with mass < child, after mass -= child for each one passed; if all are passed, into `last`,
//          whatever mass is left there.
//
// Hence rounding may move the border between two leaves by a few float32 roundings of their common node, but
// a leaf of value 0 is never found unless all are 0.
class SumTree {
 public:
  static constexpr std::size_t kChildren = 16;
  static constexpr float kMaxValue = 1e28F;  // 2^32 of them do not overflow

  // 1 to 2^32 leaves, all 0; Error otherwise.
  explicit SumTree(std::size_t leaves);

  std::size_t leaves() const { return leaves_; }
  float value(std::size_t leaf) const;  // Error if there is no such leaf
  double total() const;

  // Values from 0 to kMaxValue. Error, and nothing is changed, for others and for leaves that do not exist.
  void set(std::size_t leaf, float value);
  // All at once, one upward pass; a leaf given twice takes the last of its values.
  void set(std::span<const std::uint32_t> leaves, std::span<const float> values);

  // The leaf l with sum(0 .. l-1) <= mass < sum(0 .. l), as defined above; leaf 0 if all are 0.
  std::uint32_t find(double mass) const;
  // Many at once, level by level, so that their cache misses overlap; the same leaves as one by one.
  void find(std::span<const double> masses, std::span<std::uint32_t> leaves) const;

 private:
  static constexpr std::size_t kMaxLevels = 8;  // 16^8 = 2^32

  // Level 0 holds the leaves; the last level is the root alone. Node n of a level has the sums of the nodes
  // 16 n .. 16 n + 15 one level below, so the child c of a node is the flat number 16 n + c.
  float* level(std::size_t number) { return reinterpret_cast<float*>(nodes_.row(first_node_[number])); }
  const float* level(std::size_t number) const {
    return reinterpret_cast<const float*>(nodes_.row(first_node_[number]));
  }

  std::size_t leaves_;
  std::size_t levels_ = 0;
  std::array<std::size_t, kMaxLevels> first_node_{};
  std::array<std::size_t, kMaxLevels> nodes_of_{};
  Column nodes_;                        // one row per node, the root first
  std::vector<std::uint32_t> touched_;  // nodes whose sum must be renewed; kept to spare allocations
};

}  // namespace serl_fast
