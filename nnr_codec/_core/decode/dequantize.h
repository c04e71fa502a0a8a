// Reconstruction of weights from integers (spec/bitstream.md, "Reconstruction").
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace nnr {

// weights[i] = step * integers[i], one binary32 multiplication; in place is allowed.
inline void dequantize(const int32_t* integers, size_t count, float step, float* weights) {
  for (size_t i = 0; i < count; ++i) {
    int32_t integer;
    std::memcpy(&integer, integers + i, sizeof integer);  // in place, its type is not certain
    const float weight = step * static_cast<float>(integer);
    std::memcpy(weights + i, &weight, sizeof weight);
  }
}

}  // namespace nnr
