// Dependent quantization for the distortion alone. A step of the search is eight additions and
// comparisons, and what it decides fits one byte.
#pragma once

#include "dependent_search.h"

namespace nnr {

class DistortionTrellis : private DependentSearch {
 public:
  using DependentSearch::DependentSearch;

  void run() {
    for_each_segment(input_.syntax, false, [&](uint64_t, uint64_t first, uint64_t count) {
      path_.append(first, count);
      for (uint64_t start = first, end = first + count, stop; start < end; start = stop) {
        stop = end_of_run(start, end, kRun);
        search(start, stop - start);
      }
      return true;
    });
    unsigned shift = 8 * best_state();
    path_.for_each_backwards(input_.syntax.elements(), [&](uint64_t i) {
      const auto way = static_cast<unsigned>(kWaysBack[levels_[i]] >> shift);
      shift = way & 0x38;
      levels_[i] = level(i, way >> 6 & 3, way >> 3 & 1);
    });
  }

 private:
  static constexpr uint64_t kRun = 64;  // elements between reductions of the costs

  // Least squared errors among the |q| of one residue.
  using Distortions = std::array<float, kRun>;

  void measure(uint64_t first, uint64_t count, Distortions (&of_residue)[4]) const {
    for (uint64_t k = 0; k < count; ++k) {
      const double size = size_of(first + k);
      const double nearest = 4 * round_to_even(0.25 * size);
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

  // Steps along `count` elements, 1 to kRun; leaves the decisions where the levels will be.
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
    return cheapest_state(kDqStates, [&](int state) { return cost(state); });
  }

  int32_t level(uint64_t i, int residue, int quantizer) const {
    const double size = size_of(i);
    const int q = index_of(residue, least_index(size));
    const int nonzero = -static_cast<int>((residue != 3) | (size > 1.5));  // -1 stands for zero
    return with_sign(((q + quantizer) >> 1) & nonzero, i);
  }

  // Costs of the survivors in states 0 to 3 and 4 to 7. The search starts in state 0.
  Quad low_ = {0, kUnreachable, kUnreachable, kUnreachable};
  Quad high_ = {kUnreachable, kUnreachable, kUnreachable, kUnreachable};
};

}  // namespace nnr
