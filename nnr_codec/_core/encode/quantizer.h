// What both quantizers share: their input, and the walk along the scan with adapting rates.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "adaptive_rates.h"
#include "trellis.h"

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
};

// Runs a search over all elements in scan order: a Trellis with step(element) and end_block_row().
template <class Search>
void run_trellis(const QuantizerInput& input, Search& trellis, AdaptiveRates& rates,
                 int32_t* levels) {
  // Early decisions teach the models most: the first refreshes come soon.
  constexpr size_t kFirstInterval = 32;
  constexpr size_t kLastInterval = 512;
  size_t interval = kFirstInterval;
  size_t since = 0;
  const auto decide = [&](uint64_t element, int32_t level) {
    levels[element] = level;
    rates.adapt(level, element);
  };
  for (uint64_t block_row = 0; block_row < input.syntax.block_rows(); ++block_row) {
    if (block_row > 0) {
      rates.end_block_row();
      trellis.end_block_row();
    }
    for_each_segment(input.syntax, block_row, false, [&](uint64_t, uint64_t first, uint64_t count) {
      for (uint64_t i = first; i < first + count; ++i) {
        trellis.step(i);
        if (++since < interval) continue;
        since = 0;
        interval = interval < kLastInterval ? 2 * interval : kLastInterval;
        trellis.settle(decide);
        rates.refresh();
      }
      return true;
    });
  }
  trellis.finish(decide);
}

}  // namespace nnr
