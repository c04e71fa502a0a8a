// Dependent quantization with rates, of tensors without parent and history. As without rates
// (distortion_trellis.h), one |q| of each residue mod 4 matters, and zero beside them; what the
// search decides waits in the integer's own place. Rates depend on a survivor's state and on the
// class of its last integer, which is zero or of the weight's sign.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "adaptive_rates.h"
#include "distortion_trellis.h"

namespace nnr {

class RateTrellis {
 public:
  // `levels`: elements() integers, to be written.
  RateTrellis(const QuantizerInput& input, const TensorChoices& choices, int32_t* levels)
      : input_(input), levels_(levels), inverse_step_(1 / input.step),
        rates_(input.syntax, choices, input.lambda) {
    refresh();
  }

  void run() {
    const TensorSyntax& syntax = input_.syntax;
    std::vector<Segment> segments;
    for (uint64_t block_row = 0; block_row < syntax.block_rows(); ++block_row) {
      if (block_row > 0) end_block_row();
      for_each_segment(syntax, block_row, false, [&](uint64_t, uint64_t first, uint64_t count) {
        segments.push_back({first, count});
        for (uint64_t i = first; i < first + count; ++i) {
          step(i);
          recent_.push_back(i);
          if (recent_.size() == interval_) adapt();
        }
        return true;
      });
    }
    unsigned place = 8 * best_state();
    for (auto segment = segments.rbegin(); segment != segments.rend(); ++segment)
      for (uint64_t i = segment->first + segment->count; i-- > segment->first;)
        levels_[i] = trace_back(i, place);
  }

 private:
  static constexpr float kOutOfReach = std::numeric_limits<float>::infinity();
  static constexpr int kTabulated = 256;  // |q| whose rates are in a table
  // Elements between refreshes of the rates: few at first, when models learn most.
  static constexpr size_t kFirstInterval = 32;
  static constexpr size_t kLastInterval = 1024;
  // Of a long interval, what the models are adapted to: its end is enough.
  static constexpr size_t kAdapted = 192;

  // By state: those of even states 0, 2, 4, 6, and of odd states 1, 3, 5, 7.
  struct StateRates {
    Quad even;
    Quad odd;
  };
  // Costs, without the state's own part, of the least |q| of each residue; none of them is 0.
  struct Candidates {
    float zero;
    float of_residue[4];
  };

  Candidates candidates(uint64_t i, double size, bool negative) const {
    const auto importance = static_cast<float>(input_.importance_of(i));
    const int base = static_cast<int>(size) - 1;
    const auto above = static_cast<float>(size - base);  // 1..2
    // By place behind base. Of base -1 and 0, what is not positive stands for four more.
    constexpr Quad kPlaces[3] = {{4, 5, 2, 3}, {4, 1, 2, 3}, {0, 1, 2, 3}};
    const Quad error = above - kPlaces[base < 1 ? base + 1 : 2];
    const Quad costs = importance * (error * error) + rates_from(base, negative);
    Candidates found;
    const auto zero_error = static_cast<float>(size);
    found.zero = importance * (zero_error * zero_error);
    for (int residue = 0; residue < 4; ++residue)
      found.of_residue[residue] = costs[(residue - base) & 3];
    return found;
  }

  // The |q| of a residue among four consecutive ones around the weight, which is not 0.
  static int nearest(int base, int residue) {
    const int q = base + ((residue - base) & 3);
    return q + (q <= 0 ? 4 : 0);
  }

  static int magnitude_of(int q) { return (q + (q & 1)) >> 1; }

  // Rates of the magnitudes of |q| = base .. base + 3.
  Quad rates_from(int base, bool negative) const {
    Quad rates;
    if (base + 3 < kTabulated) {
      std::memcpy(&rates, &rate_of_q_[negative][base + 1], sizeof rates);
      return rates;
    }
    for (int k = 0; k < 4; ++k)
      rates[k] = static_cast<float>(rates_.magnitude(magnitude_of(base + k), negative, 0));
    return rates;
  }

  void step(uint64_t i) {
    const double scaled = static_cast<double>(input_.weights[i]) * inverse_step_;
    const bool negative = scaled < 0;
    const Candidates costs = candidates(i, std::fabs(scaled), negative);
    const StateRates& zero_after_zero = zero_[0];
    const StateRates& zero_after_other = zero_[left_];
    const StateRates& other_after_zero = other_[0][negative];
    const StateRates& other_after_other = other_[left_][negative];

    const Quad even_zero =
        even_ + (even_other_ ? zero_after_other.even : zero_after_zero.even) + costs.zero;
    const Quad odd_zero =
        odd_ + (odd_other_ ? zero_after_other.odd : zero_after_zero.odd) + costs.zero;
    const Quad even = even_ + (even_other_ ? other_after_other.even : other_after_zero.even);
    const Quad odd = odd_ + (odd_other_ ? other_after_other.odd : other_after_zero.odd);

    // Parity 0: zero or the even integer. It is 3 that zero stands beside in odd states.
    const Quad even_0 = even + costs.of_residue[0];
    const Quad odd_0 = odd + costs.of_residue[3];
    const QuadMask even_is_other = even_0 < even_zero;
    const QuadMask odd_is_other = odd_0 < odd_zero;
    const Quad even_best = even_0 < even_zero ? even_0 : even_zero;
    const Quad odd_best = odd_0 < odd_zero ? odd_0 : odd_zero;
    const Quad even_1 = even + costs.of_residue[2];
    const Quad odd_1 = odd + costs.of_residue[1];

    // Even states lead to 0..3, odd ones to 4..7 (kNextState).
    const Quad low_1 = __builtin_shufflevector(even_1, even_1, 2, 3, 0, 1);
    const Quad high_0 = __builtin_shufflevector(odd_best, odd_best, 3, 2, 1, 0);
    const Quad high_1 = __builtin_shufflevector(odd_1, odd_1, 1, 0, 3, 2);
    const QuadMask high_is_other = __builtin_shufflevector(odd_is_other, odd_is_other, 3, 2, 1, 0);
    const QuadMask low_parity = low_1 < even_best;
    const QuadMask high_parity = high_1 < high_0;
    const Quad low = low_1 < even_best ? low_1 : even_best;
    const Quad high = high_1 < high_0 ? high_1 : high_0;
    const QuadMask low_other = low_parity | even_is_other;
    const QuadMask high_other = high_parity | high_is_other;

    even_ = __builtin_shufflevector(low, high, 0, 2, 4, 6);
    odd_ = __builtin_shufflevector(low, high, 1, 3, 5, 7);
    even_other_ = __builtin_shufflevector(low_other, high_other, 0, 2, 4, 6);
    odd_other_ = __builtin_shufflevector(low_other, high_other, 1, 3, 5, 7);
    left_ = negative ? 1 : 2;
    levels_[i] = static_cast<int32_t>(bits_of(low_parity) | bits_of(high_parity) << 4 |
                                      bits_of(low_other) << 8 | bits_of(high_other) << 12);
  }

  // The integer of element i on the path that is in the state `place` / 8 behind it, which then
  // is the state before it.
  int32_t trace_back(uint64_t i, unsigned& place) const {
    const auto decisions = static_cast<uint32_t>(levels_[i]);
    const int other = -static_cast<int>(decisions >> (8 + place / 8) & 1);
    const auto way = static_cast<unsigned>(kWaysBack[decisions & 0xff] >> place);
    place = way & 0x38;
    const double size = std::fabs(static_cast<double>(input_.weights[i]) * inverse_step_);
    const int residue = way >> 6 & 3;
    const int q = nearest(static_cast<int>(size) - 1, residue);
    const int magnitude = magnitude_of(q) & other;
    const int negative = -static_cast<int>(input_.weights[i] < 0);
    return (magnitude ^ negative) - negative;  // without branches: signs are hard to predict
  }

  // Adapts the models to the best path so far: it is hardly ever left again.
  void adapt() {
    const size_t count = recent_.size() < kLastInterval ? recent_.size() : kAdapted;
    unsigned place = 8 * best_state();
    path_.resize(count);
    for (size_t k = 0; k < count; ++k)
      path_[count - 1 - k] = trace_back(recent_[recent_.size() - 1 - k], place);
    rates_.start_at(static_cast<int>(place / 8));
    for (size_t k = 0; k < count; ++k)
      rates_.adapt(path_[k], recent_[recent_.size() - count + k]);
    recent_.clear();
    interval_ = interval_ < kLastInterval ? 2 * interval_ : kLastInterval;
    rates_.refresh();
    refresh();
    const float lowest = cost(best_state());
    even_ -= lowest;  // costs stay small, so that they stay exact
    odd_ -= lowest;
  }

  void end_block_row() {
    rates_.end_block_row();
    refresh();
    even_other_ = odd_other_ = QuadMask{};
  }

  void refresh() {
    for (int left = 0; left < 3; ++left)
      for (int s = 0; s < kDqStates; ++s) {
        const int significance = ContextLayout::significance(s, left, 0, false);
        put(zero_[left], s, rates_.bin(significance, 0));
        for (unsigned negative = 0; negative < 2; ++negative)
          put(other_[left][negative], s,
              rates_.bin(significance, 1) + rates_.bin(ContextLayout::sign(left, 0), negative));
      }
    for (int negative = 0; negative < 2; ++negative) {
      float of_magnitude[kTabulated / 2 + 1];
      rates_.tabulate_magnitudes(negative != 0, of_magnitude, kTabulated / 2 + 1);
      float* rates = rate_of_q_[negative] + 1;
      for (int q = 1; q < kTabulated; ++q) rates[q] = of_magnitude[magnitude_of(q)];
      rates[-1] = rates[3];  // as `nearest` has it
      rates[0] = rates[4];
    }
  }

  static void put(StateRates& rates, int state, double rate) {
    Quad& half = state & 1 ? rates.odd : rates.even;
    const int lane = state / 2;
    half[lane] = static_cast<float>(rate);
  }

  float cost(int state) const { return state & 1 ? odd_[state / 2] : even_[state / 2]; }

  int best_state() const {
    int best = 0;
    for (int s = 1; s < kDqStates; ++s)
      if (cost(s) < cost(best)) best = s;
    return best;
  }

  const QuantizerInput& input_;
  int32_t* levels_;
  double inverse_step_;
  AdaptiveRates rates_;
  StateRates zero_[3];      // by class of the last integer
  StateRates other_[3][2];  // and by sign, which is rated here
  float rate_of_q_[2][1 + kTabulated] = {};  // from |q| = -1 on
  Quad even_ = {0, kOutOfReach, kOutOfReach, kOutOfReach};
  Quad odd_ = {kOutOfReach, kOutOfReach, kOutOfReach, kOutOfReach};
  QuadMask even_other_ = {};  // whether the survivor's last integer is not zero
  QuadMask odd_other_ = {};
  int left_ = 0;  // the class that it then has
  size_t interval_ = kFirstInterval;
  std::vector<uint64_t> recent_;  // elements since the last refresh
  std::vector<int32_t> path_;
};

}  // namespace nnr
