// What quantization did to a tensor, for reports.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "reconstruction.h"

namespace nnr {

struct Distortion {
  double squared_error = 0;  // sum of (weight - decoded)^2
  double energy = 0;         // sum of weight^2
  float largest = 0;         // |decoded|
};

// Adds up the errors of pieces. The sums run in four lanes, which do not wait for each other and
// make the result the same with every compiler.
class DistortionMeter {
 public:
  explicit DistortionMeter(float step) : step_(step) {}

  // Weights that are decoded as step * integers.
  void add(const int32_t* integers, const float* weights, uint64_t count) {
    uint64_t i = 0;
    for (; i + kLanes <= count; i += kLanes)
      for (int lane = 0; lane < kLanes; ++lane) add(integers[i + lane], weights[i + lane], lane);
    for (; i < count; ++i) add(integers[i], weights[i], 0);
  }

  Distortion sum() const {
    Distortion sum;
    for (int lane = 0; lane < kLanes; ++lane) {
      sum.squared_error += error_[lane];
      sum.energy += energy_[lane];
      sum.largest = std::max(sum.largest, largest_[lane]);
    }
    return sum;
  }

 private:
  static constexpr int kLanes = 4;

  void add(int32_t integer, float value, int lane) {
    const float decoded = step_ * static_cast<float>(integer);
    const double weight = value;
    const double difference = static_cast<double>(decoded) - weight;
    error_[lane] += difference * difference;
    energy_[lane] += weight * weight;
    largest_[lane] = std::max(largest_[lane], std::fabs(decoded));
  }

  float step_;
  double error_[kLanes] = {};
  double energy_[kLanes] = {};
  float largest_[kLanes] = {};
};

// Of a tensor's weights, and the levels (before the doubling) that they were quantized to.
inline Distortion measure_distortion(const TensorSyntax& tensor, const int32_t* levels,
                                     const float* weights, float step) {
  constexpr uint64_t kRun = 256;
  DistortionMeter meter(step);
  Reconstruction reconstruction(tensor);
  int32_t integers[kRun];
  for_each_segment(tensor, false, [&](uint64_t, uint64_t first, uint64_t count) {
    for (uint64_t start = first, end = first + count, stop; start < end; start = stop) {
      stop = end_of_run(start, end, kRun);
      reconstruction.run(levels + start, stop - start, integers);
      meter.add(integers, weights + start, stop - start);
    }
    return true;
  });
  return meter.sum();
}

}  // namespace nnr
