// Choice of N, the number of greater-than flags (cabac_unary_length_minus1). Few flags make large
// integers short lists of bins, which code and decode faster; many describe more exactly how the
// integers are distributed.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>

#include "bin_cost.h"

namespace nnr {

// Chooses from a histogram of the integers: the entropy of every context's bins says what N costs.
class UnaryLengthChoice {
 public:
  UnaryLengthChoice(const int32_t* levels, uint64_t count) {
    // Of many integers, runs of every fourth are enough.
    const uint64_t stride = count < kWorthSampling ? kRun : 4 * kRun;
    for (uint64_t start = 0; start < count; start += stride)
      for (uint64_t i = start; i < std::min(count, start + kRun); ++i) add(levels[i]);
  }

  // The least N that costs at most 1 / kTolerance more than the best one.
  int choose() const {
    std::array<uint64_t, kCandidates.size()> cost;
    std::transform(kCandidates.begin(), kCandidates.end(), cost.begin(),
                   [&](int n) { return cost_of(n); });
    const uint64_t best = *std::min_element(cost.begin(), cost.end());
    for (size_t i = 0;; ++i)
      if (cost[i] <= best + best / kTolerance) return kCandidates[i];
  }

 private:
  static constexpr uint64_t kRun = 256;  // integers
  static constexpr uint64_t kWorthSampling = 1 << 16;
  static constexpr uint64_t kTolerance = 1024;
  static constexpr std::array<int, 11> kCandidates = {1, 2, 3, 4, 5, 6, 8, 11, 16, 24, 32};
  static constexpr int kExact = 64;  // magnitudes below it are counted one by one
  // What a context costs to begin with, in bits: its initialization index, and to learn.
  static constexpr uint64_t kContextCost = 6 * kOneBit;
  // What a bin costs above the entropy, as models forget and follow chance.
  static constexpr uint64_t kAdaptationCost = kOneBit / 90;

  void add(int32_t level) {
    const uint32_t magnitude = level < 0 ? 0u - static_cast<uint32_t>(level) : static_cast<uint32_t>(level);
    if (magnitude < kExact)
      ++counts_[level < 0][magnitude];
    else
      ++large_[level < 0][std::bit_width(magnitude)];
  }

  // In 1/4096 bit.
  uint64_t cost_of(int n) const {
    uint64_t larger[2] = {total_large(0), total_large(1)};  // than the flag's magnitude
    for (int sign = 0; sign < 2; ++sign)
      for (int m = 1; m < kExact; ++m) larger[sign] += counts_[sign][m];
    uint64_t cost = bins_cost(larger[0] + larger[1], counts_[0][0]) + bins_cost(larger[0], larger[1]);
    for (int sign = 0; sign < 2; ++sign)
      for (int m = 1; m <= n; ++m) {
        larger[sign] -= counts_[sign][m];
        cost += bins_cost(larger[sign], counts_[sign][m]);
      }
    return cost + remainders_cost(n, larger[0] + larger[1]);
  }

  // `larger`: how many integers have a remainder.
  uint64_t remainders_cost(int n, uint64_t larger) const {
    std::array<uint64_t, 33> of_prefix{};
    for (int sign = 0; sign < 2; ++sign) {
      for (int m = n + 1; m < kExact; ++m)
        of_prefix[std::bit_width(static_cast<uint32_t>(m - n)) - 1] += counts_[sign][m];
      for (int width = 0; width <= 32; ++width)  // about: the remainder is hardly less than |k|
        of_prefix[std::max(width - 1, 0)] += large_[sign][width];
    }
    uint64_t cost = 0;
    for (uint64_t prefix = 0; prefix < of_prefix.size(); ++prefix) {
      larger -= of_prefix[prefix];
      cost += bins_cost(larger, of_prefix[prefix]) + of_prefix[prefix] * prefix * kOneBit;
    }
    return cost;
  }

  uint64_t total_large(int sign) const {
    uint64_t total = 0;
    for (const uint64_t count : large_[sign]) total += count;
    return total;
  }

  // Entropy of one context's bins.
  static uint64_t bins_cost(uint64_t ones, uint64_t zeros) {
    const uint64_t total = ones + zeros;
    if (total == 0) return 0;
    uint64_t cost = kContextCost + kAdaptationCost * total;
    for (const uint64_t part : {ones, zeros})
      if (part) cost += part * (fixed_log2(total) - fixed_log2(part));
    return cost;
  }

  uint64_t counts_[2][kExact] = {};  // by sign and magnitude
  uint64_t large_[2][33] = {};       // by sign and width in bits
};

}  // namespace nnr
