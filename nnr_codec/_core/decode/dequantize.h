// Reconstruction of weights from integers (spec/bitstream.md, "Reconstruction").
#pragma once

#include <cstddef>
#include <cstdint>

namespace nnr {

// weights[i] = step * integers[i], one binary32 multiplication; in place is allowed.
inline void dequantize(const int32_t* integers, size_t count, float step, float* weights) {
  for (size_t i = 0; i < count; ++i) weights[i] = step * static_cast<float>(integers[i]);
}

}  // namespace nnr
