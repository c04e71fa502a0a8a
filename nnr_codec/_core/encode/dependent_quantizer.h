// Dependent quantization: the Viterbi search over the eight states, with rates or for the
// distortion alone (spec/bitstream.md, "Dependent quantization").
#pragma once

#include "quantizer.h"
#include "rate_trellis.h"

namespace nnr {

// The two ways into each state: from which state, with which parity of the integer.
struct Predecessors {
  struct Branch {
    uint8_t state;
    uint8_t parity;
  };
  Branch into[kDqStates][2];

  constexpr Predecessors() : into() {
    int found[kDqStates] = {};
    for (uint8_t state = 0; state < kDqStates; ++state)
      for (uint8_t parity = 0; parity < 2; ++parity) {
        const int next = kNextState[state][parity];
        into[next][found[next]++] = {state, parity};
      }
  }
};
inline constexpr Predecessors kPredecessors{};

// The search with rates of tensors that have a parent or history: one survivor per state, each
// knowing the class of its last integer.
class DependentTrellis : public Trellis<kDqStates> {
 public:
  DependentTrellis(const QuantizerInput& input, const AdaptiveRates& rates)
      : input_(input), rates_(rates) {}

  void step(uint64_t i) {
    const double x = input_.scaled(i);
    const bool negative = x < 0;
    const double size = negative ? -x : x;
    const double importance = input_.importance_of(i);
    const int64_t parent = input_.syntax.parent_at(i);

    Candidate nonzero[2][2];  // by quantizer (state's parity) and parity of the integer
    for (int quantizer = 0; quantizer < 2; ++quantizer)
      for (int parity = 0; parity < 2; ++parity)
        nonzero[quantizer][parity] = best_nonzero(size, importance, quantizer, parity, negative, parent);
    Branch branch[kDqStates][2];
    for (int s = 0; s < kDqStates; ++s) {
      const Offsets offsets = offsets_of(s, negative, parent, i);
      const Candidate& even = nonzero[s & 1][0];
      const Candidate& odd = nonzero[s & 1][1];
      const double zero = importance * x * x + offsets.zero;
      const double other = even.cost + offsets.nonzero;
      branch[s][0] = zero <= other ? Branch{cost_[s] + zero, 0} : Branch{cost_[s] + other, even.level};
      branch[s][1] = {cost_[s] + odd.cost + offsets.nonzero, odd.level};
    }
    select(branch, i);
  }

  void end_block_row() {
    for (uint8_t& left : left_) left = 0;
  }

 private:
  struct Candidate {
    double cost;  // distortion and rate of the magnitude
    int32_t level;
  };
  struct Offsets {
    double zero;     // rate of significance 0
    double nonzero;  // rates of significance 1 and of the sign
  };
  struct Branch {
    double cost;
    int32_t level;
  };

  // The better of the two integers of this parity around the weight, on its side of zero.
  Candidate best_nonzero(double size, double importance, int quantizer, int parity, bool negative,
                         int64_t parent) const {
    const double position = 0.5 * (size + quantizer);  // where k would be if it were real
    const auto half = static_cast<int64_t>(0.5 * (position - parity) + 1) - 1;  // floor; >= -1
    const int64_t below = 2 * half + parity;
    const Candidate above = candidate(below + 2, size, importance, quantizer, negative, parent);
    if (below <= 0) return above;
    const Candidate lower = candidate(below, size, importance, quantizer, negative, parent);
    return lower.cost <= above.cost ? lower : above;
  }

  // Integer k of 1 or more.
  Candidate candidate(int64_t k, double size, double importance, int quantizer, bool negative,
                      int64_t parent) const {
    const double error = size - static_cast<double>(2 * k - quantizer);
    return {importance * error * error + rates_.magnitude(k, negative, parent),
            static_cast<int32_t>(negative ? -k : k)};
  }

  Offsets offsets_of(int state, bool negative, int64_t parent, uint64_t i) const {
    const bool history = input_.syntax.history_at(i);
    const int significance = ContextLayout::significance(state, left_[state], parent, history);
    return {rates_.bin(significance, 0),
            rates_.bin(significance, 1) +
                rates_.bin(ContextLayout::sign(left_[state], parent), negative)};
  }

  // Keeps the cheaper of the two branches into each state.
  void select(const Branch (&branch)[kDqStates][2], uint64_t i) {
    auto& decision = window_.push(i);
    for (int next = 0; next < kDqStates; ++next) {
      const auto& ways = kPredecessors.into[next];
      const Branch& first = branch[ways[0].state][ways[0].parity];
      const Branch& second = branch[ways[1].state][ways[1].parity];
      const bool take_second = second.cost < first.cost;
      cost_[next] = take_second ? second.cost : first.cost;
      decision.levels[next] = take_second ? second.level : first.level;
      decision.sources[next] = take_second ? ways[1].state : ways[0].state;
    }
    for (int s = 0; s < kDqStates; ++s)
      left_[s] = static_cast<uint8_t>(neighbour_class(decision.levels[s]));
  }

  const QuantizerInput& input_;
  const AdaptiveRates& rates_;
  uint8_t left_[kDqStates] = {};
};

inline void quantize_dependent(const QuantizerInput& input, const TensorChoices& choices,
                               int32_t* levels) {
  if (input.lambda == 0) {
    DistortionTrellis(input, levels).run();
    return;
  }
  if (input.syntax.is_plain(choices.history_enabled)) {
    RateTrellis(input, choices, levels).run();
    return;
  }
  AdaptiveRates rates(input.syntax, choices, input.lambda);
  DependentTrellis trellis(input, rates);
  run_trellis(input, trellis, rates, levels);
}

}  // namespace nnr
