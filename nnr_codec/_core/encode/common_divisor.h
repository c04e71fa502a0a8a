// Euclid's algorithm on values that were rounded to a few bits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace nnr {

// A number that all values are about integer multiples of.
class CommonDivisor {
 public:
  // `bits`: of the mantissas, and two; `most`: the greatest multiple that counts.
  CommonDivisor(int bits, double most) : bits_(bits), most_(most) {}

  // Zero if there is none, infinity if all values are zero.
  double of(const double* values, uint64_t count) {
    double largest = 0;
    Uncertain divisor{std::numeric_limits<double>::infinity(), 0};
    known_.clear();
    for (uint64_t i = 0; i < count; ++i) {
      const double magnitude = std::fabs(values[i]);
      if (!std::isfinite(magnitude)) return 0;
      if (magnitude == 0) continue;
      known_.push_back({magnitude, half_ulp(magnitude)});
      largest = std::max(largest, magnitude);
      if (magnitude < divisor.value) divisor = known_.back();
    }
    if (known_.empty()) return divisor.value;
    for (int round = 0; round < kMostRounds; ++round) {
      if (divisor.value * most_ < largest || divisor.value < 4 * divisor.error) return 0;
      const Uncertain rest = least_rest(divisor);
      if (std::isinf(rest.value)) return divisor.value;
      divisor = rest;
    }
    return 0;
  }

 private:
  struct Uncertain {
    double value, error;
  };

  static constexpr int kMostRounds = 48;

  double half_ulp(double magnitude) const {
    int exponent;
    std::frexp(magnitude, &exponent);
    return std::ldexp(1.0, exponent - bits_);
  }

  // The least rest of a division that is more than an error; infinity without.
  Uncertain least_rest(Uncertain divisor) const {
    Uncertain least{std::numeric_limits<double>::infinity(), 0};
    for (const Uncertain& known : known_) {
      const double multiple = std::nearbyint(known.value / divisor.value);
      const double rest = std::fabs(known.value - multiple * divisor.value);
      // The divisor's own error grows with the multiple.
      const double error = known.error + multiple * divisor.error;
      if (rest > 1.01 * error && rest < least.value) least = {rest, error};
    }
    return least;
  }

  int bits_;
  double most_;
  std::vector<Uncertain> known_;
};

}  // namespace nnr
