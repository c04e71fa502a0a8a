// Dependent quantization for the distortion alone. Of all reconstruction indices q around a weight
// four matter, one of each residue mod 4: quantizer and parity of the integer follow from q.
#pragma once

#include <cstring>

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
    // Errors of base .. base + 3, put where their residues belong; 3 stands in for -1.
    double distortion[4];
    const double error = size - static_cast<double>(decision.base);
    for (int k = 0; k < 4; ++k) {
      const double e = error - k;
      distortion[(decision.base + k) & 3] = importance * (e * e);
    }
    const double zero = importance * (size * size);
    if (decision.base < 0) {
      distortion[0] = zero;  // exactly, so that equal ways stay equal
      distortion[3] = importance * ((size - 3) * (size - 3));
    }
    decision.zero = zero <= distortion[3];
    if (decision.zero) distortion[3] = zero;
    decision.second = select(distortion);
  }

  void end_block_row() {}

 private:
  typedef double Pair __attribute__((vector_size(16)));  // two states at a time
  typedef int64_t Bits __attribute__((vector_size(16)));

  // Keeps the cheaper of the two ways into each state, which are those of kPredecessors; returns
  // a bit for each state, set where it is the second. Even states lead to states 0 to 3, by the
  // residues 0 and 2, odd ones to 4 to 7, by 1 and 3.
  uint8_t select(const double (&distortion)[4]) {
    Pair cost[4];
    std::memcpy(cost, cost_, sizeof cost);
    const Pair even_low = __builtin_shufflevector(cost[0], cost[1], 0, 2);   // states 0, 2
    const Pair odd_low = __builtin_shufflevector(cost[1], cost[0], 1, 3);    // states 3, 1
    const Pair even_high = __builtin_shufflevector(cost[2], cost[3], 0, 2);  // states 4, 6
    const Pair odd_high = __builtin_shufflevector(cost[3], cost[2], 1, 3);   // states 7, 5
    Bits second = {0, 0};
    second |= keep(cost[0], even_low + distortion[0], even_high + distortion[2]) & Bits{1, 2};
    second |= keep(cost[1], even_low + distortion[2], even_high + distortion[0]) & Bits{4, 8};
    second |= keep(cost[2], odd_low + distortion[1], odd_high + distortion[3]) & Bits{16, 32};
    second |= keep(cost[3], odd_low + distortion[3], odd_high + distortion[1]) & Bits{64, 128};
    std::memcpy(cost_, cost, sizeof cost);
    return static_cast<uint8_t>(second[0] | second[1]);
  }

  // Sets `cost` to the lesser of both; returns where that is `second`.
  static Bits keep(Pair& cost, Pair first, Pair second) {
    const Bits take = second < first;
    cost = take ? second : first;
    return take;
  }

  const QuantizerInput& input_;
};

}  // namespace nnr
