#include "serl_fast/priorities.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "serl_fast/error.h"
#include "serl_fast/rng.h"

namespace serl_fast {
namespace {

// Of p^alpha: smaller ones would round to 0 in the sum tree, and be lost for ever.
constexpr double kLeast = 1e-30;

const PriorityOptions& validated(const PriorityOptions& options) {
  if (!(options.alpha >= 0.0 && options.alpha <= 1.0)) {
    throw Error("alpha is " + std::to_string(options.alpha) + "; it lies in [0, 1]");
  }
  if (!(options.epsilon > 0.0 && std::isfinite(options.epsilon))) {
    throw Error("epsilon is " + std::to_string(options.epsilon) + "; it is finite and above 0");
  }
  if (!(std::pow(options.epsilon, options.alpha) >= kLeast)) {
    throw Error("epsilon^alpha is below 1e-30, too little to be drawn; raise epsilon");
  }
  return options;
}

}  // namespace

Priorities::Priorities(const PriorityOptions& options, std::size_t rows)
    : options_(validated(options)), tree_(rows), largest_(1.0F) {}

void Priorities::require_errors(std::span<const float> errors) const {
  for (std::size_t i = 0; i < errors.size(); ++i) {
    if (!(errors[i] >= 0.0F && errors[i] <= SumTree::kMaxValue)) {
      throw Error("priority " + std::to_string(i) + " is " + std::to_string(errors[i]) +
                  "; priorities are finite and not negative");
    }
  }
}

void Priorities::update(std::span<const std::uint32_t> rows, std::span<const float> errors) {
  std::vector<float> values(errors.size());
  for (std::size_t i = 0; i < errors.size(); ++i) {
    const double priority = static_cast<double>(errors[i]) + options_.epsilon;
    values[i] = static_cast<float>(std::pow(priority, options_.alpha));
  }
  tree_.set(rows, values);
  for (const float value : values) largest_ = std::max(largest_, value);
}

void Priorities::draw(std::uint64_t seed, std::uint64_t draw, std::span<std::uint32_t> rows,
                      std::span<double> masses) const {
  uniform_doubles(seed, draw, masses);
  const double part = tree_.total() / static_cast<double>(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) masses[i] = (static_cast<double>(i) + masses[i]) * part;
  tree_.find(masses, rows);
}

void Priorities::weights(std::span<const std::uint32_t> rows, std::size_t size, double beta,
                         float* weights) const {
  const double scale = static_cast<double>(size) / tree_.total();
  double largest = 0.0;
  std::vector<double> exact(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    exact[i] = std::pow(scale * static_cast<double>(tree_.value(rows[i])), -beta);
    largest = std::max(largest, exact[i]);
  }
  for (std::size_t i = 0; i < rows.size(); ++i) weights[i] = static_cast<float>(exact[i] / largest);
}

}  // namespace serl_fast
