// What a bin costs under a probability model, in fixed point, so that every processor and
// compiler takes the same decisions (spec/bitstream.md, "Probability models").
#pragma once

#include <array>
#include <bit>
#include <cstdint>

#include "../decode/probability_model.h"

namespace nnr {

inline constexpr int kCostBits = 12;  // costs are in 1/4096 bit
inline constexpr uint32_t kOneBit = 1u << kCostBits;

namespace detail {

// log2(x) for x in (0, 1], by the series of atanh; exact enough at compile time.
constexpr double log2_constexpr(double x) {
  int exponent = 0;
  while (x < 0.75) {
    x *= 2;
    --exponent;
  }
  const double t = (x - 1) / (x + 1);
  double term = t;
  double sum = 0;
  for (int i = 1; i < 40; i += 2) {
    sum += term / i;
    term *= t * t;
  }
  return exponent + 2 * sum / 0.693147180559945309417;
}

constexpr uint32_t to_cost(double probability) {
  return static_cast<uint32_t>(-log2_constexpr(probability) * kOneBit + 0.5);
}

// log2(1 + i / 256).
struct Log2Table {
  std::array<uint32_t, 257> value{};

  constexpr Log2Table() {
    for (int i = 0; i <= 256; ++i) value[i] = kOneBit - to_cost((256 + i) / 512.0);
  }
};
inline constexpr Log2Table kLog2{};

}  // namespace detail

// log2(x) in 1/4096 for x of 1 or more, the same on every processor.
inline uint64_t fixed_log2(uint64_t x) {
  const int exponent = std::bit_width(x) - 1;
  const uint64_t fraction = (x << (63 - exponent)) << 1;  // of 2^64
  const uint32_t index = static_cast<uint32_t>(fraction >> 56);
  const uint64_t between = (fraction >> 40) & 0xffff;
  const uint64_t low = detail::kLog2.value[index];
  const uint64_t high = detail::kLog2.value[index + 1];
  return static_cast<uint64_t>(exponent) * kOneBit + low + ((high - low) * between >> 16);
}

// kBinCost[bin][(S >> 7) + 32]. The probability of the less probable symbol is the mean of its
// share over the eight classes of the range.
struct BinCostTable {
  std::array<std::array<uint32_t, 64>, 2> cost{};

  constexpr BinCostTable() {
    for (int column = 0; column < 64; ++column) {
      const int bucket = column - 32;
      const int magnitude = bucket < 0 ? -bucket : bucket;
      double lps = 0;
      for (int row = 0; row < 8; ++row)
        lps += kLpsRange[row][magnitude > 31 ? 31 : magnitude] / (272.0 + 32 * row) / 8;
      const int likelier = bucket >= 0 ? 1 : 0;
      cost[likelier][column] = detail::to_cost(1 - lps);
      cost[1 - likelier][column] = detail::to_cost(lps);
    }
  }
};
inline constexpr BinCostTable kBinCost{};

inline uint32_t bin_cost(const ProbabilityModel& model, unsigned bin) {
  return kBinCost.cost[bin][(model.combined() >> 7) + 32];
}

}  // namespace nnr
