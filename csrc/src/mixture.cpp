#include "serl_fast/mixture.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <string>

namespace serl_fast {
namespace {

bool is_positive(double value) { return value > 0.0; }

bool same_column(const Output& a, const Output& b) {
  return a.kind == b.kind && a.repeat == b.repeat && a.sequence == b.sequence &&
         a.field.name == b.field.name && a.field.dtype == b.field.dtype &&
         a.field.row_shape() == b.field.row_shape();
}

void require_same(const Layout& first, const Layout& other, std::size_t number) {
  const std::string source = "source " + std::to_string(number);
  for (std::size_t c = 0; c < std::min(first.columns.size(), other.columns.size()); ++c) {
    if (same_column(first.columns[c], other.columns[c])) continue;
    throw Error("column '" + other.columns[c].field.name + "' of " + source + " differs from column '" +
                first.columns[c].field.name + "' of source 0");
  }
  if (first.columns.size() != other.columns.size()) {
    throw Error(source + " has " + std::to_string(other.columns.size()) + " columns; source 0 has " +
                std::to_string(first.columns.size()));
  }
}

const std::vector<Sampler*>& checked(const std::vector<Sampler*>& samplers) {
  if (samplers.empty()) throw Error("a mixture of no sources; it has at least one");
  for (std::size_t i = 1; i < samplers.size(); ++i) {
    require_same(samplers[0]->layout(), samplers[i]->layout(), i);
  }
  return samplers;
}

// part * rows / total, rounded down, and what is left. total <= 2^63.
struct Quotient {
  std::uint64_t whole = 0;
  std::uint64_t rest = 0;
};

Quotient divide(std::uint64_t part, std::size_t rows, std::uint64_t total) {
  Quotient q;
  const auto add = [&](std::uint64_t more) {  // rest < total and more <= total: no overflow
    q.rest += more;
    if (q.rest < total) return;
    q.rest -= total;
    ++q.whole;
  };
  for (std::size_t bit = std::bit_floor(rows); bit != 0; bit >>= 1U) {
    q.whole *= 2;
    add(q.rest);
    if ((rows & bit) != 0) add(part);
  }
  return q;
}

}  // namespace

void require_shares(std::span<const double> shares, std::size_t sources) {
  if (shares.size() != sources) {
    throw Error(std::to_string(sources) + " stores have " + std::to_string(shares.size()) +
                " shares; give one share per store");
  }
  const bool possible =
      std::all_of(shares.begin(), shares.end(), [](double s) { return std::isfinite(s) && s >= 0.0; });
  if (possible && std::any_of(shares.begin(), shares.end(), is_positive)) return;
  std::string given;
  for (const double share : shares) given += (given.empty() ? "" : ", ") + std::to_string(share);
  throw Error("the shares are (" + given + "); they are finite, not negative and not all 0");
}

std::vector<std::size_t> largest_remainders(std::span<const double> shares, std::size_t rows) {
  int exponent = 0;  // every share is below 2^exponent
  std::frexp(*std::max_element(shares.begin(), shares.end()), &exponent);
  const int bits = 63 - static_cast<int>(std::bit_width(shares.size()));  // so that the sum stays within 2^63
  std::vector<std::uint64_t> parts;
  for (const double share : shares) {
    parts.push_back(static_cast<std::uint64_t>(std::llround(std::ldexp(share, bits - exponent))));
  }
  const std::uint64_t total = std::accumulate(parts.begin(), parts.end(), std::uint64_t{0});

  std::vector<std::size_t> counts;
  std::vector<std::uint64_t> rests;
  for (const std::uint64_t part : parts) {
    const Quotient q = divide(part, rows, total);
    counts.push_back(static_cast<std::size_t>(q.whole));
    rests.push_back(q.rest);
  }
  std::size_t left = rows - std::accumulate(counts.begin(), counts.end(), std::size_t{0});
  for (; left > 0; --left) {
    const auto largest = std::max_element(rests.begin(), rests.end());  // the first of equals
    ++counts[static_cast<std::size_t>(largest - rests.begin())];
    *largest = 0;
  }
  return counts;
}

Mixture::Mixture(std::vector<Sampler*> samplers, std::span<const double> shares, std::size_t min_size)
    : samplers_(checked(samplers)), min_size_(min_size) {
  if (min_size == 0) throw Error("min_size is 0; it is at least 1");
  for (const Sampler* sampler : samplers_) in_order_ = in_order_ || sampler->order() == Order::kEpoch;
  set_shares(shares);
}

std::vector<double> Mixture::shares() const {
  const std::lock_guard lock(mutex_);
  return shares_;
}

void Mixture::set_shares(std::span<const double> shares) {
  require_shares(shares, sources());
  const std::lock_guard lock(mutex_);
  shares_.assign(shares.begin(), shares.end());
}

std::size_t Mixture::held(std::size_t source) const {
  return samplers_[source]->layout().view.starts(store(source).size());
}

std::vector<double> Mixture::effective(std::span<const double> shares) const {
  std::vector<double> result(shares.begin(), shares.end());
  for (std::size_t i = 0; i < result.size(); ++i) {
    if (held(i) < min_size_) result[i] = 0.0;
  }
  return result;
}

bool Mixture::ready(std::span<const double> shares) const {
  const std::vector<double> parts = shares.empty() ? effective(this->shares()) : effective(shares);
  return std::any_of(parts.begin(), parts.end(), is_positive);
}

std::vector<std::size_t> Mixture::counts(std::size_t rows, std::span<const double> shares) const {
  if (rows == 0) throw Error("the batch size is 0; it is at least 1");
  const std::vector<double> parts = shares.empty() ? effective(this->shares()) : effective(shares);
  if (std::any_of(parts.begin(), parts.end(), is_positive)) return largest_remainders(parts, rows);
  std::string held_now;
  for (std::size_t i = 0; i < sources(); ++i) held_now += (i == 0 ? "" : ", ") + std::to_string(held(i));
  const std::string what = layout().view.length > 0 ? "sequences" : "transitions";
  throw Error("the stores hold " + held_now + " " + what + "; one with a share needs at least " +
              std::to_string(min_size_));
}

void Mixture::plan(std::size_t rows, Plan& plan, std::span<const double> shares) {
  plan.counts = counts(rows, shares);
  plan.draws.assign(sources(), 0);
  plan.appended.clear();
  const std::lock_guard lock(mutex_);
  for (std::size_t i = 0; i < sources(); ++i) {
    Store& store = samplers_[i]->store();
    plan.appended.push_back(store.appended());
    if (plan.counts[i] > 0 && samplers_[i]->order() != Order::kEpoch) plan.draws[i] = store.next_draw();
  }
}

void Mixture::fill(const Plan& plan, std::span<std::byte* const> out, std::int32_t* sources) {
  static thread_local std::vector<std::byte*> part;
  part.assign(out.begin(), out.end());
  const std::vector<Output>& columns = layout().columns;
  for (std::size_t i = 0; i < samplers_.size(); ++i) {
    const std::size_t rows = plan.counts[i];
    if (rows == 0) continue;
    samplers_[i]->sample(rows, part, plan.draws[i]);
    for (std::size_t c = 0; c < part.size(); ++c) {
      if (part[c] != nullptr) part[c] += rows * columns[c].row_bytes();
    }
    if (sources != nullptr) sources = std::fill_n(sources, rows, static_cast<std::int32_t>(i));
  }
}

void Mixture::sample(std::size_t rows, std::span<std::byte* const> out, std::int32_t* sources) {
  Plan made;
  plan(rows, made);
  fill(made, out, sources);
}

}  // namespace serl_fast
