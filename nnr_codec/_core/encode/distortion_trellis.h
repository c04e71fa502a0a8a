// Dependent quantization for the distortion alone. Of all reconstruction indices q around a weight
// four matter, the nearest one of each residue of |q| mod 4: quantizer and parity of the integer
// follow from q. So a step of the search is eight additions and comparisons, and what it decides
// fits one byte, which waits in the integer's own place until the search has reached the end.
#pragma once

#include <array>
#include <cmath>
#include <limits>

#include "quantizer.h"

#ifdef __SSE__
#include <xmmintrin.h>
#endif

namespace nnr {

// Residue mod 4 of |q|, by quantizer (parity of the state) and parity of the integer k, where
// |q| = 2 |k| - quantizer. Zero, which both quantizers have, stands in for -1, which none has.
inline constexpr int kResidue[2][2] = {{0, 2}, {3, 1}};

// Four states at a time: even states lead to states 0 to 3 by the residues 0 and 2, odd ones to 4
// to 7 by 1 and 3.
typedef float Quad __attribute__((vector_size(16)));
typedef int32_t QuadMask __attribute__((vector_size(16)));

// The four lanes' sign bits.
inline unsigned bits_of(QuadMask mask) {
#ifdef __SSE__
  return static_cast<unsigned>(_mm_movemask_ps(reinterpret_cast<__m128>(mask)));
#else
  return (mask[0] & 1) | (mask[1] & 2) | (mask[2] & 4) | (mask[3] & 8);
#endif
}

// How states were entered, by a byte of decisions (bit s: parity of the integer that led to state
// s). Byte s of the word: 8 * the state before, so that the byte is the next shift, and the residue
// times 64.
class WaysBack {
 public:
  constexpr WaysBack() : words_() {
    for (int decisions = 0; decisions < 256; ++decisions)
      for (int state = 0; state < kDqStates; ++state)
        for (int parity = 0; parity < 2; ++parity) {
          const int next = kNextState[state][parity];
          if ((decisions >> next & 1) != parity) continue;
          const uint64_t way = 8 * state | kResidue[state & 1][parity] << 6;
          words_[decisions] |= way << (8 * next);
        }
  }
  constexpr uint64_t operator[](int decisions) const { return words_[decisions]; }

 private:
  std::array<uint64_t, 256> words_;
};
inline constexpr WaysBack kWaysBack{};

// Elements that are contiguous in memory and in the scan.
struct Segment {
  uint64_t first;
  uint64_t count;
};

class DistortionTrellis {
 public:
  // `levels`: elements() integers, to be written.
  DistortionTrellis(const QuantizerInput& input, int32_t* levels)
      : input_(input), levels_(levels), inverse_step_(1 / input.step) {}

  void run() {
    const std::vector<Segment> segments = segments_of(input_.syntax);
    for (const auto& [first, count] : segments)
      for (uint64_t start = 0; start < count; start += kRun)
        search(first + start, count - start < kRun ? count - start : kRun);
    unsigned place = 8 * best_state();
    for (auto segment = segments.rbegin(); segment != segments.rend(); ++segment)
      place = trace_back(segment->first, segment->count, place);
  }

 private:
  static constexpr uint64_t kRun = 64;  // elements between reductions of the costs

  // Least squared errors among the |q| of one residue.
  using Distortions = std::array<float, kRun>;

  // The scan in pieces that are contiguous in memory.
  static std::vector<Segment> segments_of(const TensorSyntax& tensor) {
    std::vector<Segment> segments;
    for (uint64_t block_row = 0; block_row < tensor.block_rows(); ++block_row)
      for_each_segment(tensor, block_row, false, [&](uint64_t, uint64_t first, uint64_t count) {
        segments.push_back({first, count});
        return true;
      });
    return segments;
  }

  double size_of(uint64_t i) const {
    return std::fabs(static_cast<double>(input_.weights[i]) * inverse_step_);
  }

  void measure(uint64_t first, uint64_t count, Distortions (&of_residue)[4]) const {
    constexpr double kRounder = 6755399441055744.0;  // adding it rounds to a whole number
    for (uint64_t k = 0; k < count; ++k) {
      const double size = size_of(first + k);
      const double nearest = 4 * ((0.25 * size + kRounder) - kRounder);  // multiple of 4
      const float error = static_cast<float>(size - nearest);            // -2..2
      const float left = std::fabs(error - 1);
      const float right = std::fabs(error + (static_cast<float>(nearest) == 0 ? 0.0f : 1.0f));
      const float two = 2 - std::fabs(error);
      const float one = left < error + 3 ? left : error + 3;
      const float three = right < 3 - error ? right : 3 - error;
      of_residue[0][k] = error * error;
      of_residue[1][k] = one * one;
      of_residue[2][k] = two * two;
      of_residue[3][k] = three * three;
    }
    if (!input_.importance) return;
    for (auto& distortions : of_residue)
      for (uint64_t k = 0; k < count; ++k) distortions[k] *= input_.importance[first + k];
  }

  // Steps along `count` elements, 1 to kRun; leaves the decisions in the place of the levels.
  void search(uint64_t first, uint64_t count) {
    Distortions of_residue[4];
    measure(first, count, of_residue);
    Quad low = low_;
    Quad high = high_;
    for (uint64_t k = 0; k < count; ++k) {
      const Quad low_even = __builtin_shufflevector(low, high, 0, 2, 4, 6) + of_residue[0][k];
      const Quad low_odd = __builtin_shufflevector(high, low, 0, 2, 4, 6) + of_residue[2][k];
      const Quad high_even = __builtin_shufflevector(high, low, 3, 1, 7, 5) + of_residue[3][k];
      const Quad high_odd = __builtin_shufflevector(low, high, 3, 1, 7, 5) + of_residue[1][k];
      const QuadMask low_parity = low_odd < low_even;
      const QuadMask high_parity = high_odd < high_even;
      low = low_odd < low_even ? low_odd : low_even;
      high = high_odd < high_even ? high_odd : high_even;
      levels_[first + k] = static_cast<int32_t>(bits_of(low_parity) | bits_of(high_parity) << 4);
    }
    low_ = low;
    high_ = high;
    const float lowest = cost(best_state());
    low_ -= lowest;  // costs stay small, so that they stay exact
    high_ -= lowest;
  }

  float cost(int state) const { return state < 4 ? low_[state] : high_[state - 4]; }

  int best_state() const {
    int best = 0;
    for (int s = 1; s < kDqStates; ++s)
      if (cost(s) < cost(best)) best = s;
    return best;
  }

  // Writes the levels of `count` elements, last one first. `place`: 8 * the state behind them;
  // returns 8 * the state before.
  unsigned trace_back(uint64_t first, uint64_t count, unsigned place) {
    for (uint64_t i = first + count; i-- > first;) {
      const auto way = static_cast<unsigned>(kWaysBack[levels_[i]] >> place);
      place = way & 0x38;
      levels_[i] = level(i, way >> 6 & 3, way >> 3 & 1);
    }
    return place;
  }

  int32_t level(uint64_t i, int residue, int quantizer) const {
    const double size = size_of(i);
    // The one of its residue among four consecutive |q| around the weight; -1 only where zero is.
    const int base = static_cast<int>(size) - 1;
    const int q = base + ((residue - base) & 3);
    const int nonzero = -static_cast<int>((residue != 3) | (size > 1.5));
    const int magnitude = ((q + quantizer) >> 1) & nonzero;
    const int negative = -static_cast<int>(input_.weights[i] < 0);
    return (magnitude ^ negative) - negative;  // without branches: signs are hard to predict
  }

  const QuantizerInput& input_;
  int32_t* levels_;
  double inverse_step_;
  // Costs of the survivors in states 0 to 3 and 4 to 7. The search starts in state 0.
  Quad low_ = {0, kOutOfReach, kOutOfReach, kOutOfReach};
  Quad high_ = {kOutOfReach, kOutOfReach, kOutOfReach, kOutOfReach};

  static constexpr float kOutOfReach = std::numeric_limits<float>::infinity();
};

}  // namespace nnr
