// Dependent quantization for the distortion alone. Of all reconstruction indices q around a weight
// four matter, one of each residue mod 4: quantizer and parity of the integer follow from q.
#pragma once

#include "quantizer.h"

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

// Residue mod 4 of |q|, by quantizer (parity of the state) and parity of the integer k, where
// |q| = 2 |k| - quantizer.
inline constexpr int kResidue[2][2] = {{0, 2}, {3, 1}};

// The decisions at one element, in few bytes: the levels follow from the weight's place.
struct DistortionStep {
  uint64_t element;
  int32_t base;        // floor(|w| / step) - 1: the least of four consecutive |q|
  uint8_t second;      // bit s: state s is entered by its second way
  bool negative;       // sign of the weight
  bool zero;           // zero is nearer than the |q| of residue 3

  int from(int state) const { return way(state).state; }

  int32_t level(int state) const {
    const auto branch = way(state);
    const int quantizer = branch.state & 1;
    const int residue = kResidue[quantizer][branch.parity];
    if (residue == 3 && zero) return 0;
    const int64_t magnitude = (nearest(residue) + quantizer) / 2;
    return static_cast<int32_t>(negative ? -magnitude : magnitude);
  }

  // The |q| of this residue among base .. base + 3; not -1, whose sign would be the other.
  int64_t nearest(int residue) const {
    const int64_t q = base + ((residue - base) & 3);
    return q < 0 ? q + 4 : q;
  }

 private:
  Predecessors::Branch way(int state) const {
    return kPredecessors.into[state][(second >> state) & 1];
  }
};

class DistortionTrellis : public Trellis<kDqStates, DistortionStep> {
 public:
  explicit DistortionTrellis(const QuantizerInput& input) : input_(input) {}

  void step(uint64_t i) {
    const double x = input_.scaled(i);
    const double size = x < 0 ? -x : x;
    const double importance = input_.importance_of(i);
    DistortionStep& decision = window_.push(i);
    decision.base = static_cast<int32_t>(size) - 1;
    decision.negative = x < 0;
    double distortion[4];
    for (int residue = 0; residue < 4; ++residue) {
      const double error = size - static_cast<double>(decision.nearest(residue));
      distortion[residue] = importance * (error * error);
    }
    const double zero = importance * (size * size);
    decision.zero = zero <= distortion[3];
    if (decision.zero) distortion[3] = zero;
    select(decision, distortion);
  }

  void end_block_row() {}

 private:
  // Keeps the cheaper of the two ways into each state.
  void select(DistortionStep& decision, const double (&distortion)[4]) {
    double next[kDqStates];
    unsigned second_ways = 0;
    for (int s = 0; s < kDqStates; ++s) {
      const auto& ways = kPredecessors.into[s];
      const double first = cost_[ways[0].state] + distortion[residue_of(ways[0])];
      const double second = cost_[ways[1].state] + distortion[residue_of(ways[1])];
      second_ways |= static_cast<unsigned>(second < first) << s;
      next[s] = second < first ? second : first;
    }
    for (int s = 0; s < kDqStates; ++s) cost_[s] = next[s];
    decision.second = static_cast<uint8_t>(second_ways);
  }

  static constexpr int residue_of(Predecessors::Branch way) {
    return kResidue[way.state & 1][way.parity];
  }

  const QuantizerInput& input_;
};

}  // namespace nnr
