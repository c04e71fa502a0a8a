// What all quantizers share: their input, the order in which they go through it, and the choice of
// a survivor.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "adaptive_rates.h"

namespace nnr {

// Distortion of element i: importance[i] * (weights[i] / step - q)^2; one bit costs `lambda`.
// syntax.history is set exactly if the tensor will be coded with history contexts.
struct QuantizerInput {
  TensorSyntax syntax;
  const float* weights = nullptr;     // finite, |weights / step| < 2^31 - 8
  const float* importance = nullptr;  // non-negative, or null: all 1
  double step = 1;                    // > 0
  double lambda = 0;                  // >= 0

  double scaled(uint64_t i) const { return static_cast<double>(weights[i]) / step; }
  double importance_of(uint64_t i) const { return importance ? importance[i] : 1.0; }
  bool is_plain() const { return syntax.is_plain(syntax.history != nullptr); }
};

// The largest |weight|; NaN if any weight is NaN. Bits without the sign are in the order of
// magnitudes, those of NaN above all others.
inline float largest_magnitude(const float* weights, uint64_t count) {
  uint32_t largest = 0;
  for (uint64_t i = 0; i < count; ++i)
    largest = std::max(largest, std::bit_cast<uint32_t>(weights[i]) & 0x7fffffff);
  return std::bit_cast<float>(largest);
}

// The nearest whole number, ties to even, of |x| < 2^51: a function that vectorizes everywhere.
inline double round_to_even(double x) {
  constexpr double kRounder = 6755399441055744.0;  // 1.5 * 2^52, which leaves no room for fractions
  return (x + kRounder) - kRounder;
}

// The state of least cost, the first of several.
template <class CostOf>
int cheapest_state(int states, CostOf&& cost_of) {
  int best = 0;
  for (int s = 1; s < states; ++s)
    if (cost_of(s) < cost_of(best)) best = s;
  return best;
}

// Runs a search with rates over all elements in scan order. It has search(first, count), for
// elements that are contiguous in memory and in the scan, end_block_row(), and adapt(), which is
// called soon at first, when models learn most, later every `longest_interval` elements.
template <class Search>
void search_with_rates(const TensorSyntax& syntax, uint64_t longest_interval, Search& search) {
  constexpr uint64_t kFirstInterval = 32;
  uint64_t interval = kFirstInterval;
  uint64_t since = 0;
  for (uint64_t block_row = 0; block_row < syntax.block_rows(); ++block_row) {
    if (block_row > 0) search.end_block_row();
    for_each_segment(syntax, block_row, false, [&](uint64_t, uint64_t first, uint64_t count) {
      for (uint64_t start = first, end = first + count, stop; start < end; start = stop) {
        stop = end_of_run(start, end, interval - since);
        search.search(start, stop - start);
        since += stop - start;
        if (since < interval) continue;
        search.adapt();
        since = 0;
        interval = std::min(2 * interval, longest_interval);
      }
      return true;
    });
  }
}

}  // namespace nnr
