// The reconstruction indices of levels, as decoders find them (spec/bitstream.md, "Dependent
// quantization").
#pragma once

#include <algorithm>
#include <cstdint>

#include "../decode/tensor_syntax.h"

namespace nnr {

// Follows the dq state through a tensor's levels in scan order.
class Reconstruction {
 public:
  explicit Reconstruction(const TensorSyntax& tensor) : tensor_(tensor) {}

  // Writes the indices of `count` levels that come next.
  void run(const int32_t* levels, uint64_t count, int32_t* integers) {
    if (!tensor_.dependent_quantization) {
      std::copy(levels, levels + count, integers);
      return;
    }
    int state = state_;
    for (uint64_t i = 0; i < count; ++i) {
      integers[i] = static_cast<int32_t>(reconstruction_index(levels[i], state));
      state = kNextState[state][levels[i] & 1];
    }
    state_ = state;
  }

  void skip_row() { state_ = state_after_skipped_row(state_, tensor_.cols); }

 private:
  const TensorSyntax& tensor_;
  int state_ = 0;
};

}  // namespace nnr
