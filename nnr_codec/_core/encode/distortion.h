// What quantization did to a tensor, for reports.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace nnr {

struct Distortion {
  double squared_error = 0;  // sum of (weight - decoded)^2
  double energy = 0;         // sum of weight^2
  float largest = 0;         // |decoded|
};

// Of weights that were decoded as step * integers. The sums run in four lanes, which do not wait
// for each other and make the result the same with every compiler.
inline Distortion measure_distortion(const int32_t* integers, const float* weights, uint64_t count,
                                     float step) {
  constexpr int kLanes = 4;
  double error[kLanes] = {}, energy[kLanes] = {};
  float largest[kLanes] = {};
  const auto add = [&](uint64_t i, int lane) {
    const float decoded = step * static_cast<float>(integers[i]);
    const double weight = weights[i];
    const double difference = static_cast<double>(decoded) - weight;
    error[lane] += difference * difference;
    energy[lane] += weight * weight;
    largest[lane] = std::max(largest[lane], std::fabs(decoded));
  };
  uint64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) add(i + lane, lane);
  for (; i < count; ++i) add(i, 0);
  Distortion sum;
  for (int lane = 0; lane < kLanes; ++lane) {
    sum.squared_error += error[lane];
    sum.energy += energy[lane];
    sum.largest = std::max(sum.largest, largest[lane]);
  }
  return sum;
}

}  // namespace nnr
