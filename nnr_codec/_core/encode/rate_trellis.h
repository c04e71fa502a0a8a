// Dependent quantization with rates. As without rates (distortion_trellis.h), one |q| of each
// residue mod 4 matters, and zero beside them. Rates depend on a survivor's state and on the class
// of its last integer, which is zero or of the weight's sign, and on the parent's integer and the
// history of the element.
#pragma once

#include <cstring>

#include "dependent_search.h"

namespace nnr {

class RateTrellis : private DependentSearch {
 public:
  RateTrellis(const QuantizerInput& input, int32_t* levels)
      : DependentSearch(input, levels), plain_(input.is_plain()),
        rates_(input.syntax, input.lambda) {
    refresh();
  }

  void run() {
    // A parent or history make more models, which learn slower.
    search_with_rates(input_.syntax, plain_ ? kLongestInterval : kLongestInterval / 2, *this);
    unsigned shift = 8 * best_state();
    path_.for_each_backwards(input_.syntax.elements(),
                             [&](uint64_t i) { levels_[i] = trace_back(i, shift); });
  }

  // Steps along `count` elements.
  void search(uint64_t first, uint64_t count) {
    path_.append(first, count);
    since_adaptation_ += count;
    if (plain_)
      for (uint64_t i = first; i < first + count; ++i) step(i, 0, false);
    else
      for (uint64_t i = first; i < first + count; ++i)
        step(i, input_.syntax.parent_at(i), input_.syntax.history_at(i));
  }

  // Adapts the models to the best path so far, which is hardly ever left again, and refreshes the
  // rates.
  void adapt() {
    const uint64_t count = since_adaptation_ < kLongestInterval ? since_adaptation_ : kAdapted;
    unsigned shift = 8 * best_state();
    uint64_t t = count;
    path_.for_each_backwards(count, [&](uint64_t i) {
      recent_[--t] = i;
      recent_levels_[t] = trace_back(i, shift);
    });
    rates_.start_at(static_cast<int>(shift / 8));
    rates_.adapt(recent_levels_.data(), recent_.data(), count);
    since_adaptation_ = 0;
    rates_.refresh();
    refresh();
    const float lowest = cost(best_state());
    even_ -= lowest;  // costs stay small, so that they stay exact
    odd_ -= lowest;
  }

  void end_block_row() {
    rates_.end_block_row();
    refresh();
    even_nonzero_ = odd_nonzero_ = QuadMask{};
  }

 private:
  static constexpr int kTabulated = 256;  // |q| whose rates are in a table
  static constexpr uint64_t kLongestInterval = 1024;
  static constexpr uint64_t kAdapted = 192;  // elements at its end that the models are adapted to

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

  // What selects the contexts of significance and sign, beside the state: the class of the last
  // integer where there is no parent, else the parent's sign and size; and history.
  static constexpr int kContextClasses = 14;
  static int context_class(int left, int64_t parent, bool history) {
    if (parent == 0) return left + 3 * history;
    return 6 + 4 * history + 2 * (parent > 1 || parent < -1) + (parent > 0);
  }

  Candidates candidates(uint64_t i, double size, bool negative, int64_t parent) const {
    const auto importance = static_cast<float>(input_.importance_of(i));
    const int base = least_index(size);
    const auto above = static_cast<float>(size - base);  // 1..2
    // By distance from base. Of base -1 and 0, what is not positive stands for four more.
    constexpr Quad kDistances[3] = {{4, 5, 2, 3}, {4, 1, 2, 3}, {0, 1, 2, 3}};
    const Quad error = above - kDistances[base < 1 ? base + 1 : 2];
    const Quad costs = importance * (error * error) + rates_from(base, negative, parent);
    Candidates candidates;
    const auto zero_error = static_cast<float>(size);
    candidates.zero = importance * (zero_error * zero_error);
    for (int residue = 0; residue < 4; ++residue)
      candidates.of_residue[residue] = costs[(residue - base) & 3];
    return candidates;
  }

  static int magnitude_of(int q) { return (q + (q & 1)) >> 1; }
  static int make_positive(int q) { return q + (q <= 0 ? 4 : 0); }

  // Rates of the magnitudes of |q| = base .. base + 3.
  Quad rates_from(int base, bool negative, int64_t parent) const {
    Quad rates;
    if (parent == 0 && base + 3 < kTabulated) {
      std::memcpy(&rates, &rate_of_q_[negative][base + 1], sizeof rates);
      return rates;
    }
    for (int k = 0; k < 4; ++k)
      rates[k] = static_cast<float>(
          rates_.magnitude(magnitude_of(make_positive(base + k)), negative, parent));
    return rates;
  }

  void step(uint64_t i, int64_t parent, bool history) {
    const double scaled = static_cast<double>(input_.weights[i]) * inverse_step_;
    const bool negative = scaled < 0;
    const Candidates costs = candidates(i, std::fabs(scaled), negative, parent);
    const int after_zero = context_class(0, parent, history);
    const int after_nonzero = context_class(left_, parent, history);
    const StateRates& zero_after_zero = zero_[after_zero];
    const StateRates& zero_after_nonzero = zero_[after_nonzero];
    const StateRates& nonzero_after_zero = nonzero_[after_zero][negative];
    const StateRates& nonzero_after_nonzero = nonzero_[after_nonzero][negative];

    const Quad even_zero =
        even_ + (even_nonzero_ ? zero_after_nonzero.even : zero_after_zero.even) + costs.zero;
    const Quad odd_zero =
        odd_ + (odd_nonzero_ ? zero_after_nonzero.odd : zero_after_zero.odd) + costs.zero;
    const Quad even =
        even_ + (even_nonzero_ ? nonzero_after_nonzero.even : nonzero_after_zero.even);
    const Quad odd = odd_ + (odd_nonzero_ ? nonzero_after_nonzero.odd : nonzero_after_zero.odd);

    // Parity 0: zero or the even integer. It is 3 that zero stands beside in odd states.
    const Quad even_0 = even + costs.of_residue[0];
    const Quad odd_0 = odd + costs.of_residue[3];
    const QuadMask even_is_nonzero = even_0 < even_zero;
    const QuadMask odd_is_nonzero = odd_0 < odd_zero;
    const Quad even_best = even_0 < even_zero ? even_0 : even_zero;
    const Quad odd_best = odd_0 < odd_zero ? odd_0 : odd_zero;
    const Quad even_1 = even + costs.of_residue[2];
    const Quad odd_1 = odd + costs.of_residue[1];

    // Even states lead to 0..3, odd ones to 4..7 (kNextState).
    const Quad low_1 = __builtin_shufflevector(even_1, even_1, 2, 3, 0, 1);
    const Quad high_0 = __builtin_shufflevector(odd_best, odd_best, 3, 2, 1, 0);
    const Quad high_1 = __builtin_shufflevector(odd_1, odd_1, 1, 0, 3, 2);
    const QuadMask high_is_nonzero =
        __builtin_shufflevector(odd_is_nonzero, odd_is_nonzero, 3, 2, 1, 0);
    const QuadMask low_parity = low_1 < even_best;
    const QuadMask high_parity = high_1 < high_0;
    const Quad low = low_1 < even_best ? low_1 : even_best;
    const Quad high = high_1 < high_0 ? high_1 : high_0;
    const QuadMask low_nonzero = low_parity | even_is_nonzero;
    const QuadMask high_nonzero = high_parity | high_is_nonzero;

    even_ = __builtin_shufflevector(low, high, 0, 2, 4, 6);
    odd_ = __builtin_shufflevector(low, high, 1, 3, 5, 7);
    even_nonzero_ = __builtin_shufflevector(low_nonzero, high_nonzero, 0, 2, 4, 6);
    odd_nonzero_ = __builtin_shufflevector(low_nonzero, high_nonzero, 1, 3, 5, 7);
    left_ = negative ? 1 : 2;
    levels_[i] = static_cast<int32_t>(bits_of(low_parity) | bits_of(high_parity) << 4 |
                                      bits_of(low_nonzero) << 8 | bits_of(high_nonzero) << 12);
  }

  // The integer of element i on the path that is in the state `shift` / 8 behind it; `shift` then
  // is 8 * the state before it.
  int32_t trace_back(uint64_t i, unsigned& shift) const {
    const auto decisions = static_cast<uint32_t>(levels_[i]);
    const int nonzero = -static_cast<int>(decisions >> (8 + shift / 8) & 1);
    const auto way = static_cast<unsigned>(kWaysBack[decisions & 0xff] >> shift);
    shift = way & 0x38;
    const int q = make_positive(index_of(way >> 6 & 3, least_index(size_of(i))));
    return with_sign(magnitude_of(q) & nonzero, i);
  }

  void refresh() {
    if (plain_) {
      for (int left = 0; left < 3; ++left) refresh(left, 0, false);
    } else {
      for (const bool history : {false, true})
        for (const int parent : {-2, -1, 0, 1, 2})
          for (int left = 0; left < 3; ++left) refresh(left, parent, history);
    }
    for (int negative = 0; negative < 2; ++negative) {
      float* rates = rate_of_q_[negative] + 1;
      for (int q = 1; q < kTabulated; q += 2)
        rates[q] = rates[q + 1] = static_cast<float>(rates_.table(negative)[magnitude_of(q)]);
      rates[-1] = rates[3];  // as `make_positive` has it
      rates[0] = rates[4];
    }
  }

  // The rates of one class of contexts.
  void refresh(int left, int64_t parent, bool history) {
    const int context = context_class(left, parent, history);
    for (int s = 0; s < kDqStates; ++s) {
      const int significance = ContextLayout::significance(s, left, parent, history);
      put(zero_[context], s, rates_.bin(significance, 0));
      for (unsigned negative = 0; negative < 2; ++negative)
        put(nonzero_[context][negative], s,
            rates_.bin(significance, 1) + rates_.bin(ContextLayout::sign(left, parent), negative));
    }
  }

  static void put(StateRates& rates, int state, double rate) {
    Quad& half = state & 1 ? rates.odd : rates.even;
    const int lane = state / 2;
    half[lane] = static_cast<float>(rate);
  }

  float cost(int state) const { return state & 1 ? odd_[state / 2] : even_[state / 2]; }

  int best_state() const {
    return cheapest_state(kDqStates, [&](int state) { return cost(state); });
  }

  bool plain_;  // neither parent nor history
  AdaptiveRates rates_;
  StateRates zero_[kContextClasses];
  StateRates nonzero_[kContextClasses][2];      // and by sign, which is rated here
  float rate_of_q_[2][2 + kTabulated] = {};  // from |q| = -1 on
  Quad even_ = {0, kUnreachable, kUnreachable, kUnreachable};
  Quad odd_ = {kUnreachable, kUnreachable, kUnreachable, kUnreachable};
  QuadMask even_nonzero_ = {};  // whether the survivor's last integer is not zero
  QuadMask odd_nonzero_ = {};
  int left_ = 0;  // the class that it then has
  uint64_t since_adaptation_ = 0;  // elements
  std::array<uint64_t, kLongestInterval> recent_;
  std::array<int32_t, kLongestInterval> recent_levels_;
};

}  // namespace nnr
