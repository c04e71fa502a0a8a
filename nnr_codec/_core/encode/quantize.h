// Quantization of weights: the integers to code, before the doubling of dependent quantization.
#pragma once

#include "distortion_trellis.h"
#include "feedback_trellis.h"
#include "rate_trellis.h"
#include "uniform_quantizer.h"

namespace nnr {

// `levels`: elements() integers, to be written.
inline void quantize(const QuantizerInput& input, int32_t* levels) {
  if (!input.syntax.dependent_quantization)
    quantize_uniform(input, levels);
  else if (input.lambda > 0)
    RateTrellis(input, levels).run();
  else
    DistortionTrellis(input, levels).run();
}

}  // namespace nnr
