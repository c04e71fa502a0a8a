// Turns a tensor's integers into bins (spec/bitstream.md, "Coded tensor", "Binarization").
//
// A sink takes the bins: void bin(int context, unsigned bin); void bypass(uint32_t bits, int
// count); void end_block_row(int dq_state), called at the end of every block row but the last.
// The arithmetic coder is one sink, the search for initialization indices another.
#pragma once

#include <cstdint>

#include "../decode/tensor_syntax.h"

namespace nnr {

// What the encoder chose for a tensor, beyond its syntax.
struct TensorChoices {
  bool history_enabled = false;            // hist_dep_sig_prob_enabled_flag
  const uint8_t* skipped_rows = nullptr;   // rows flags; null: row_skip_enabled_flag is 0
};

template <class Sink>
class Binarizer {
 public:
  Binarizer(const TensorSyntax& tensor, const TensorChoices& choices, Sink& sink)
      : tensor_(tensor), choices_(choices), layout_{tensor.unary_length}, range_(tensor),
        sink_(sink) {}

  // `levels`: elements() integers as they are coded, before the doubling of dependent
  // quantization.
  void run(const int32_t* levels) {
    if (tensor_.single_value()) return;
    const bool plain = tensor_.is_plain(choices_.history_enabled);
    const uint64_t block_rows = tensor_.block_rows();
    for (uint64_t block_row = 0; block_row < block_rows; ++block_row) {
      start_block_row();
      for_each_segment(tensor_, block_row, [&](uint64_t row, uint64_t first, uint64_t count) {
        if (choices_.skipped_rows && choices_.skipped_rows[row]) {
          if (tensor_.dependent_quantization) state_ = state_after_skipped_row(state_, tensor_.cols);
        } else if (plain) {
          for (uint64_t i = first; i < first + count; ++i) put<true>(levels[i], i);
        } else {
          for (uint64_t i = first; i < first + count; ++i) put<false>(levels[i], i);
        }
        return true;
      });
      if (block_row + 1 < block_rows) sink_.end_block_row(state_);
    }
  }

  void start_block_row() { left_ = 0; }

  // Binarizes the integer of element `i`, the next in scan order; kPlain: tensor.is_plain().
  template <bool kPlain>
  void put(int64_t level, uint64_t i) {
    const int64_t parent = kPlain ? 0 : tensor_.parent_at(i);
    const bool history = !kPlain && choices_.history_enabled && tensor_.history_at(i);
    sink_.bin(ContextLayout::significance(state_, left_, parent, history), level != 0);
    if (level != 0) put_nonzero<kPlain>(level, parent);
    left_ = neighbour_class(level);
    if (tensor_.dependent_quantization) state_ = kNextState[state_][level & 1];
  }

 private:
  template <bool kPlain>
  void put_nonzero(int64_t level, int64_t parent) {
    const bool negative = level < 0;
    if (kPlain || range_.sign_coded()) sink_.bin(ContextLayout::sign(left_, parent), negative);
    const int64_t largest = kPlain || !range_.bounded ? INT64_MAX
                            : negative                ? range_.negative
                                                      : range_.positive;
    const int64_t magnitude = negative ? -level : level;
    const int n = tensor_.unary_length;
    for (int j = 0; j < n; ++j) {
      if (!kPlain && j + 1 >= largest) return;
      const unsigned greater = magnitude > j + 1;
      sink_.bin(layout_.greater(j, negative, parent), greater);
      if (!greater) return;
    }
    if (kPlain || n + 1 < largest) put_remainder(magnitude - (n + 1), largest - (n + 1));
  }

  void put_remainder(int64_t remainder, int64_t largest) {
    int64_t base = 0;
    int k = 0;
    while (k < kMaxRemainderPrefix && largest >= base + (int64_t{1} << k)) {
      const unsigned more = remainder >= base + (int64_t{1} << k);
      sink_.bin(layout_.remainder() + k, more);
      if (!more) break;
      base += int64_t{1} << k;
      ++k;
    }
    sink_.bypass(static_cast<uint32_t>(remainder - base), k);
  }

  const TensorSyntax& tensor_;
  const TensorChoices& choices_;
  ContextLayout layout_;
  CodebookRange range_;
  Sink& sink_;
  int state_ = 0;
  int left_ = 0;
};

}  // namespace nnr
