#include "serl_fast/sum_tree.h"

#include <algorithm>
#include <string>

#include "serl_fast/error.h"

namespace serl_fast {
namespace {

constexpr std::size_t kChildren = SumTree::kChildren;
constexpr std::size_t kTogether = 32;  // descents in flight: enough to hide a miss, few enough for L1

float sum_of(const float* node) {
  float sum = 0.0F;
  for (std::size_t child = 0; child < kChildren; ++child) sum += node[child];
  return sum;
}

// The child to go down into; takes from `mass` what lies before it.
std::size_t choose(const float* node, double& mass) {
  std::size_t last = kChildren - 1;
  while (last > 0 && node[last] == 0.0F) --last;
  std::size_t child = 0;
  for (double left = mass; child < last; ++child, mass = left) {
    if (left < static_cast<double>(node[child])) break;
    left -= static_cast<double>(node[child]);
  }
  return child;
}

double usable(double mass) { return mass > 0.0 ? mass : 0.0; }  // also for NaN

// A hint only; touches nothing.
void prefetch([[maybe_unused]] const float* node) {
#if defined(__GNUC__)
  __builtin_prefetch(node);
#endif
}

void require_leaf(std::size_t leaf, std::size_t leaves) {
  if (leaf >= leaves)
    throw Error("leaf " + std::to_string(leaf) + " does not exist; the sum tree has " +
                std::to_string(leaves));
}

void require_value(float value, std::size_t leaf) {
  if (!(value >= 0.0F && value <= SumTree::kMaxValue))
    throw Error("value " + std::to_string(value) + " of leaf " + std::to_string(leaf) +
                " cannot be summed; 0 to 1e28 are accepted");
}

void require_equal(std::size_t leaves, const char* name, std::size_t others) {
  if (leaves != others)
    throw Error(std::to_string(leaves) + " leaves and " + std::to_string(others) + " " + name +
                "; one for each is accepted");
}

}  // namespace

SumTree::SumTree(std::size_t leaves) : leaves_(leaves) {
  if (leaves == 0 || leaves - 1 > 0xffffffffU)
    throw Error("a sum tree cannot have " + std::to_string(leaves) + " leaves; 1 to 4294967296 are accepted");
  std::size_t nodes = leaves;
  do {
    nodes = (nodes + kChildren - 1) / kChildren;
    nodes_of_[levels_++] = nodes;
  } while (nodes > 1);
  std::size_t first = 0;
  for (std::size_t number = levels_; number-- > 0;) {
    first_node_[number] = first;
    first += nodes_of_[number];
  }
  nodes_ = Column(first, kChildren * sizeof(float));
}

float SumTree::value(std::size_t leaf) const {
  require_leaf(leaf, leaves_);
  return level(0)[leaf];
}

double SumTree::total() const {
  const float* root = level(levels_ - 1);
  double sum = 0.0;
  for (std::size_t child = 0; child < kChildren; ++child) sum += static_cast<double>(root[child]);
  return sum;
}

void SumTree::set(std::size_t leaf, float value) {
  require_leaf(leaf, leaves_);
  require_value(value, leaf);
  level(0)[leaf] = value;
  std::size_t node = leaf / kChildren;
  for (std::size_t number = 1; number < levels_; ++number, node /= kChildren)
    level(number)[node] = sum_of(level(number - 1) + node * kChildren);
}

void SumTree::set(std::span<const std::uint32_t> leaves, std::span<const float> values) {
  require_equal(leaves.size(), "values", values.size());
  float* const bottom = level(0);
  for (std::size_t i = 0; i < leaves.size(); ++i) {
    require_leaf(leaves[i], leaves_);
    require_value(values[i], leaves[i]);
    prefetch(bottom + leaves[i]);
  }
  touched_.clear();
  touched_.reserve(leaves.size());  // the last thing that can fail
  for (std::size_t i = 0; i < leaves.size(); ++i) {
    bottom[leaves[i]] = values[i];
    const auto node = static_cast<std::uint32_t>(leaves[i] / kChildren);
    if (touched_.empty() || touched_.back() != node) touched_.push_back(node);
  }
  // A node that is listed twice is computed twice with the same result. Neighbours are joined, which serves
  // runs of leaves; a level that has no more nodes than are listed is renewed as a whole.
  for (std::size_t number = 1; number < levels_; ++number) {
    const float* const below = level(number - 1);
    float* const sums = level(number);
    const std::size_t nodes = nodes_of_[number - 1];
    if (touched_.size() > nodes) {
      touched_.resize(nodes);
      for (std::size_t node = 0; node < nodes; ++node) touched_[node] = static_cast<std::uint32_t>(node);
    }
    std::size_t kept = 0;
    for (const std::uint32_t node : touched_) {
      sums[node] = sum_of(below + node * kChildren);
      const auto parent = static_cast<std::uint32_t>(node / kChildren);
      if (kept == 0 || touched_[kept - 1] != parent) touched_[kept++] = parent;
    }
    touched_.resize(kept);
  }
}

std::uint32_t SumTree::find(double mass) const {
  mass = usable(mass);
  std::size_t at = 0;
  for (std::size_t number = levels_; number-- > 0;)
    at = at * kChildren + choose(level(number) + at * kChildren, mass);
  return static_cast<std::uint32_t>(at);
}

void SumTree::find(std::span<const double> masses, std::span<std::uint32_t> leaves) const {
  require_equal(leaves.size(), "masses", masses.size());
  std::array<double, kTogether> left{};
  std::array<std::size_t, kTogether> at{};
  for (std::size_t begin = 0; begin < masses.size(); begin += kTogether) {
    const std::size_t count = std::min(kTogether, masses.size() - begin);
    for (std::size_t i = 0; i < count; ++i) {
      left[i] = usable(masses[begin + i]);
      at[i] = 0;
    }
    for (std::size_t number = levels_; number-- > 0;) {
      const float* const nodes = level(number);
      const float* const below = number > 0 ? level(number - 1) : nodes;
      for (std::size_t i = 0; i < count; ++i) {
        at[i] = at[i] * kChildren + choose(nodes + at[i] * kChildren, left[i]);
        if (number > 0) prefetch(below + at[i] * kChildren);
      }
    }
    for (std::size_t i = 0; i < count; ++i) leaves[begin + i] = static_cast<std::uint32_t>(at[i]);
  }
}

}  // namespace serl_fast
