// Uniform reconstruction quantization: rounding, or a rate-distortion search over the classes of
// the left neighbour, which is all that the rates depend on. An integer is zero or has the weight's
// sign, so that there are two states: the last integer is zero, or it is not.
#pragma once

#include <array>
#include <cstring>
#include <limits>

#include "quantizer.h"

namespace nnr {

typedef double Pair __attribute__((vector_size(16)));

class UniformTrellis {
 public:
  // `levels`: elements() integers, to be written.
  UniformTrellis(const QuantizerInput& input, int32_t* levels)
      : input_(input), levels_(levels), rates_(input.syntax, input.lambda) {}

  void run() {
    search_with_rates(input_.syntax, kLongestInterval, *this);
    decide(open_, cheapest_state());
  }

  // Steps along `count` elements.
  void search(uint64_t first, uint64_t count) {
    if (input_.is_plain())
      step_along<true>(first, count);
    else
      step_along<false>(first, count);
  }

  // Decides what the survivors share, adapts the models to it and refreshes the rates.
  void adapt() {
    const double lowest = cost_[cheapest_state()];
    cost_ -= lowest;  // costs stay small, so that they stay exact
    decide_shared();
    if (open_ >= kMostOpen) {  // runs of zeros can keep survivors of equal cost apart for ever
      const int best = cheapest_state();
      cost_[1 - best] = kUnreachable;
      decide(open_, best);
    }
    checked_ = open_;
    rates_.refresh();
  }

  // No survivor sees a left neighbour now: the best one remains.
  void end_block_row() {
    rates_.end_block_row();
    cost_[1 - cheapest_state()] = kUnreachable;
    left_ = 0;
  }

 private:
  static constexpr double kUnreachable = std::numeric_limits<double>::infinity();
  static constexpr uint64_t kLongestInterval = 512;
  static constexpr size_t kMostOpen = 4096;
  static constexpr size_t kRoom = kMostOpen + kLongestInterval;

  // The integer other than zero that is best for a weight.
  struct Candidate {
    double cost;  // distortion, and rate of the magnitude
    int32_t level;
  };

  template <bool kPlain>
  void step_along(uint64_t first, uint64_t count) {
    Pair cost = cost_;
    int left = left_;
    size_t t = open_;
    for (uint64_t i = first; i < first + count; ++i, ++t) {
      const int64_t parent = kPlain ? 0 : input_.syntax.parent_at(i);
      const bool history = !kPlain && input_.syntax.history_at(i);
      const double x = input_.scaled(i);
      const bool negative = x < 0;
      const double importance = input_.importance_of(i);
      const Candidate nonzero = candidate(std::fabs(x), importance, negative, parent);
      const Pair part = {importance * x * x, nonzero.cost};
      // Costs of zero and of the other integer behind a survivor.
      const auto costs_after = [&](double survivor, int left_class) {
        const int significance = ContextLayout::significance(0, left_class, parent, history);
        const Pair significance_rates = {rates_.bin(significance, 0), rates_.bin(significance, 1)};
        const Pair sign_rate = {0, rates_.bin(ContextLayout::sign(left_class, parent), negative)};
        return survivor + part + significance_rates + sign_rate;
      };
      const Pair from_zero = costs_after(cost[0], 0);
      const Pair from_nonzero = costs_after(cost[1], left);
      const bool zero_source = from_nonzero[0] < from_zero[0];
      const bool nonzero_source = from_nonzero[1] < from_zero[1];
      sources_[t] = static_cast<uint8_t>(zero_source | nonzero_source << 1);
      cost = from_nonzero < from_zero ? from_nonzero : from_zero;
      open_levels_[t] = nonzero.level;
      elements_[t] = i;
      left = negative ? 1 : 2;
    }
    cost_ = cost;
    left_ = left;
    open_ = t;
  }

  Candidate candidate(double size, double importance, bool negative, int64_t parent) const {
    const auto below = static_cast<int32_t>(size);
    const Pair error = {size - below, size - (below + 1)};
    const Pair cost = importance * error * error + rates_from(below, negative, parent);
    const int32_t magnitude = below + (cost[1] < cost[0]);
    return {cost[1] < cost[0] ? cost[1] : cost[0], negative ? -magnitude : magnitude};
  }

  // Of `magnitude` (infinite, if that is 0) and the next one.
  Pair rates_from(int32_t magnitude, bool negative, int64_t parent) const {
    const auto k = static_cast<uint32_t>(magnitude);
    if (magnitude >= AdaptiveRates::kTabulated - 1 || parent)
      return Pair{rates_.magnitude(k, negative, parent), rates_.magnitude(k + 1, negative, parent)};
    Pair rates;
    std::memcpy(&rates, rates_.table(negative) + k, sizeof rates);
    return rates;
  }

  int cheapest_state() const { return cost_[1] < cost_[0]; }

  // Decides the elements before the last one whose states were both entered from the same one.
  void decide_shared() {
    for (size_t t = open_; t-- > checked_;) {
      if (sources_[t] != 0 && sources_[t] != 3) continue;
      decide(t, sources_[t] & 1);
      return;
    }
  }

  // Writes the first `count` open levels, on the path that is in `state` behind them.
  void decide(size_t count, int state) {
    for (size_t t = count; t-- > 0;) {
      open_levels_[t] &= -state;
      state = sources_[t] >> state & 1;
      levels_[elements_[t]] = open_levels_[t];
    }
    rates_.adapt(open_levels_.data(), elements_.data(), count);
    const auto drop = [&](auto& open) {
      std::copy(open.begin() + count, open.begin() + open_, open.begin());
    };
    drop(elements_);
    drop(open_levels_);
    drop(sources_);
    open_ -= count;
  }

  const QuantizerInput& input_;
  int32_t* levels_;
  AdaptiveRates rates_;
  Pair cost_ = {0, kUnreachable};  // of the survivors whose last integer is zero, and is not
  int left_ = 0;                   // the class that it then has
  // The elements that are not decided yet: each with its integer other than zero, and the states
  // that zero (bit 0) and that integer (bit 1) were entered from.
  std::array<uint64_t, kRoom> elements_;
  std::array<int32_t, kRoom> open_levels_;
  std::array<uint8_t, kRoom> sources_;
  size_t open_ = 0;
  size_t checked_ = 0;  // of these, how many were looked at for what survivors share
};

inline void quantize_uniform(const QuantizerInput& input, int32_t* levels) {
  if (input.lambda > 0) {
    UniformTrellis(input, levels).run();
    return;
  }
  for (uint64_t i = 0; i < input.syntax.elements(); ++i)
    levels[i] = static_cast<int32_t>(round_to_even(input.scaled(i)));
}

}  // namespace nnr
