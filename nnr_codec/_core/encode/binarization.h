// Turns a tensor's integers into bins (spec/bitstream.md, "Coded tensor", "Binarization").
//
// A sink takes the bins: void bin(int context, unsigned bin); void bypass(uint32_t bits, int
// count); void end_block_row(int dq_state), called at the end of every block row but the last.
// start_run(bins) gives what takes the next bins, that many at most, in the same way, and
// end_run takes it back. The arithmetic coder is one sink, the search for initialization indices
// another.
#pragma once

#include <cstdint>

#include "../decode/tensor_syntax.h"

namespace nnr {

// What the encoder chose for a tensor, beyond its syntax.
struct TensorChoices {
  bool history_enabled = false;            // hist_dep_sig_prob_enabled_flag
  const uint8_t* skipped_rows = nullptr;   // rows flags; null: row_skip_enabled_flag is 0
};

// For sinks that need no other form for runs of bins.
template <class Sink>
struct SimpleSink {
  Sink& start_run(size_t) { return static_cast<Sink&>(*this); }
  void end_run(const Sink&) {}
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
    const bool plain = tensor_.is_plain(choices_.history_enabled);
    const uint64_t block_rows = tensor_.block_rows();
    for (uint64_t block_row = 0; block_row < block_rows; ++block_row) {
      start_block_row();
      for_each_segment(tensor_, block_row, [&](uint64_t row, uint64_t first, uint64_t count) {
        if (tensor_.single_value())
          return false;  // nothing is coded, but block rows end all the same
        if (choices_.skipped_rows && choices_.skipped_rows[row])
          skip_row();
        else if (plain)
          put_segment<true>(levels, first, count);
        else
          put_segment<false>(levels, first, count);
        return true;
      });
      if (block_row + 1 < block_rows) sink_.end_block_row(place_.state);
    }
  }

  void start_block_row() { place_.left = 0; }

  // Binarizes the integer of element `i`, the next in scan order.
  void put(int64_t level, uint64_t i) { put_integer<false>(sink_, place_, level, i); }

 private:
  static constexpr uint64_t kRun = 256;  // integers between looks at the sink's room

  // Where in the scan the binarization stands.
  struct Place {
    int state = 0;  // of dependent quantization
    int left = 0;   // class of the integer before
  };

  void skip_row() {
    if (tensor_.dependent_quantization)
      place_.state = state_after_skipped_row(place_.state, tensor_.cols);
  }

  template <bool kPlain>
  void put_segment(const int32_t* levels, uint64_t first, uint64_t count) {
    const size_t bins_each = 2 + tensor_.unary_length + 2 * kMaxRemainderPrefix;
    Place place = place_;  // a local copy stays in registers, as does the sink's run
    for (uint64_t start = first; start < first + count; start += kRun) {
      const uint64_t stop = first + count - start < kRun ? first + count : start + kRun;
      auto&& run = sink_.start_run((stop - start) * bins_each);
      for (uint64_t i = start; i < stop; ++i) put_integer<kPlain>(run, place, levels[i], i);
      sink_.end_run(run);
    }
    place_ = place;
  }

  template <bool kPlain, class Run>
  void put_integer(Run& run, Place& place, int64_t level, uint64_t i) const {
    const int64_t parent = kPlain ? 0 : tensor_.parent_at(i);
    const bool history = !kPlain && choices_.history_enabled && tensor_.history_at(i);
    run.bin(ContextLayout::significance(place.state, place.left, parent, history), level != 0);
    if (level != 0) put_nonzero<kPlain>(run, place.left, level, parent);
    place.left = neighbour_class(level);
    if (tensor_.dependent_quantization) place.state = kNextState[place.state][level & 1];
  }

  template <bool kPlain, class Run>
  void put_nonzero(Run& run, int left, int64_t level, int64_t parent) const {
    const bool negative = level < 0;
    if (kPlain || range_.sign_coded()) run.bin(ContextLayout::sign(left, parent), negative);
    const int64_t largest = kPlain || !range_.bounded ? INT64_MAX
                            : negative                ? range_.negative
                                                      : range_.positive;
    const int64_t magnitude = negative ? -level : level;
    const int n = tensor_.unary_length;
    for (int j = 0; j < n; ++j) {
      if (!kPlain && j + 1 >= largest) return;
      const unsigned greater = magnitude > j + 1;
      run.bin(layout_.greater(j, negative, parent), greater);
      if (!greater) return;
    }
    if (kPlain || n + 1 < largest) put_remainder(run, magnitude - (n + 1), largest - (n + 1));
  }

  template <class Run>
  void put_remainder(Run& run, int64_t remainder, int64_t largest) const {
    int64_t base = 0;
    int k = 0;
    while (k < kMaxRemainderPrefix && largest >= base + (int64_t{1} << k)) {
      const unsigned more = remainder >= base + (int64_t{1} << k);
      run.bin(layout_.remainder() + k, more);
      if (!more) break;
      base += int64_t{1} << k;
      ++k;
    }
    run.bypass(static_cast<uint32_t>(remainder - base), k);
  }

  const TensorSyntax& tensor_;
  const TensorChoices& choices_;
  ContextLayout layout_;
  CodebookRange range_;
  Sink& sink_;
  Place place_;
};

}  // namespace nnr
