// Uniform reconstruction quantization: rounding, or a rate-distortion search over the classes of
// the left neighbour (zero, negative, positive), which is all that the rates depend on.
#pragma once

#include "quantizer.h"

namespace nnr {

inline constexpr int kUniformStates = 3;  // class of the integer just chosen

class UniformTrellis : public Trellis<kUniformStates> {
 public:
  UniformTrellis(const QuantizerInput& input, const AdaptiveRates& rates)
      : input_(input), rates_(rates) {}

  void step(uint64_t i) {
    const double x = input_.scaled(i);
    const double importance = input_.importance_of(i);
    const bool negative = x < 0;
    const double size = negative ? -x : x;
    const int64_t parent = input_.syntax.parent_at(i);
    const bool history = input_.syntax.history_at(i);

    const auto below = static_cast<int64_t>(size);
    double best_nonzero = kUnreachable;
    int64_t magnitude = 0;
    for (int64_t k = below > 0 ? below : 1; k <= below + 1; ++k) {
      const double error = size - static_cast<double>(k);
      const double cost = importance * error * error + rates_.magnitude(k, negative, parent);
      if (cost < best_nonzero) {
        best_nonzero = cost;
        magnitude = k;
      }
    }
    choose(i, importance * x * x, best_nonzero, negative ? -magnitude : magnitude, parent, history);
  }

  // All survivors see no left neighbour now: the best one remains.
  void end_block_row() {
    const int best = best_state();
    for (int s = 0; s < kUniformStates; ++s) {
      no_left_[s] = true;
      if (s != best) cost_[s] = kUnreachable;
    }
  }

 private:
  void choose(uint64_t i, double zero_distortion, double nonzero_cost, int64_t level,
              int64_t parent, bool history) {
    auto& decision = window_.push(i);
    double next[kUniformStates] = {kUnreachable, kUnreachable, kUnreachable};
    const int target = neighbour_class(level);
    for (int s = 0; s < kUniformStates; ++s) {
      if (!(cost_[s] < kUnreachable)) continue;
      const int left = no_left_[s] ? 0 : s;
      const int significance = ContextLayout::significance(0, left, parent, history);
      const double zero = cost_[s] + zero_distortion + rates_.bin(significance, 0);
      const double nonzero = cost_[s] + nonzero_cost + rates_.bin(significance, 1) +
                             rates_.bin(ContextLayout::sign(left, parent), level < 0);
      take(decision, next, 0, zero, 0, s);
      take(decision, next, target, nonzero, static_cast<int32_t>(level), s);
    }
    for (int s = 0; s < kUniformStates; ++s) {
      cost_[s] = next[s];
      no_left_[s] = false;
    }
  }

  static void take(SurvivorStep<kUniformStates>& decision, double (&next)[kUniformStates], int target,
                   double cost, int32_t level, int from) {
    if (!(cost < next[target])) return;
    next[target] = cost;
    decision.levels[target] = level;
    decision.sources[target] = static_cast<uint8_t>(from);
  }

  const QuantizerInput& input_;
  const AdaptiveRates& rates_;
  bool no_left_[kUniformStates] = {true, true, true};
};

inline void quantize_uniform(const QuantizerInput& input, const TensorChoices& choices,
                             int32_t* levels) {
  if (input.lambda == 0) {
    for (uint64_t i = 0; i < input.syntax.elements(); ++i)
      levels[i] = static_cast<int32_t>(std::nearbyint(input.scaled(i)));
    return;
  }
  AdaptiveRates rates(input.syntax, choices, input.lambda);
  UniformTrellis trellis(input, rates);
  run_trellis(input, trellis, rates, levels);
}

}  // namespace nnr
