// Decodes the integers of one tensor (spec/bitstream.md, "Coded tensor" to "Scan orders and entry points").
#pragma once

#include <cstdint>

#include "arithmetic_decoder.h"
#include "processor.h"
#include "tensor_syntax.h"

namespace nnr {

enum class DecodeStatus {
  kOk,
  kTruncated,            // the codeword goes on past the unit's end
  kIntegerOverflow,      // an integer does not fit 32 bits
  kEntryPointMismatch,   // an entry point disagrees with what stands at the block row's start
  kNotTerminated,        // no terminating bin where the codeword should end
  kBadStopBit,           // no stop bit, followed by zeros, behind the terminating bin
  kValueOutOfRange,      // the codeword is none that an encoder writes
  kTrailingBytes,        // bytes are left behind the codeword
};

// What a block row hands on to the next one, and what entry points say of it.
struct BlockRowState {
  uint64_t position = 0;  // bits from the codeword's start
  unsigned value8 = 0;
  int dq_state = 0;

  bool operator==(const BlockRowState& other) const {
    return position == other.position && value8 == other.value8 && dq_state == other.dq_state;
  }
};

// Decodes one tensor in two steps: the preamble once, then block rows, in order or (each from its
// entry point, with a TensorDecoder copied after the preamble) in any order; or, in order, each
// block row piece by piece.
template <class Room>
class BasicTensorDecoder {
 public:
  // `skipped_rows`: tensor.skipped_rows_bytes() zeroed bytes, used only if tensor.has_flags();
  // `room`: for the contexts, if it is the caller's.
  template <class... Rooms>
  BasicTensorDecoder(const TensorSyntax& tensor, uint8_t* skipped_rows, Rooms... room)
      : tensor_(tensor), layout_{tensor.unary_length}, range_(tensor), contexts_{{room...}},
        skipped_(skipped_rows) {
    contexts_.start(layout_);
  }

  // Reads the flags, the skipped rows and the initialization indices.
  DecodeStatus read_preamble(ArithmeticDecoder& decoder) {
    if (tensor_.has_flags()) {
      if (tensor_.parent_present) history_enabled_ = decoder.decode_bypass(1) != 0;
      row_skip_ = decoder.decode_bypass(1) != 0;
    }
    if (row_skip_) {
      CodingModel& model = contexts_.models[layout_.row_skip_flag()];
      for (uint64_t row = 0; row < tensor_.rows; ++row) {
        skipped_[row >> 3] |= static_cast<uint8_t>(decoder.decode(model) << (row & 7));
        if (decoder.overrun()) return DecodeStatus::kTruncated;
      }
    }
    CodingModel& flag = contexts_.models[layout_.index_flag()];
    for_each_indexed_context(tensor_, history_enabled_, [&](int context) {
      const int coded = decoder.decode(flag) ? 1 + static_cast<int>(decoder.decode_bypass(3)) : 0;
      contexts_.set(context, coded);
    });
    if (tensor_.block_rows() > 1) decoder.reset_range();
    if (decoder.out_of_range()) return DecodeStatus::kValueOutOfRange;
    return decoder.overrun() ? DecodeStatus::kTruncated : DecodeStatus::kOk;
  }

  // Decodes block row `block_row` into its elements of `out` (tensor.elements() int32, zeroed by the
  // caller); dq_state is the state at its start and, afterwards, at its end. Follows it up with
  // what stands between block rows.
  DecodeStatus decode_block_row(ArithmeticDecoder& decoder, uint64_t block_row, int& dq_state,
                                int32_t* out) {
    begin_block_row();
    DecodeStatus status = DecodeStatus::kOk;
    if (!tensor_.single_value()) {
      for_each_segment(tensor_, block_row, row_skip_, [&](uint64_t row, uint64_t first, uint64_t count) {
        if (passes_over(row, dq_state)) return true;
        status = decode_piece(decoder, first, count, dq_state, out + first);
        return status == DecodeStatus::kOk;
      });
    }
    if (block_row + 1 < tensor_.block_rows()) end_block_row(decoder);
    return status;
  }

  // The same piece by piece: to be called before each block row, and behind each but the last.
  void begin_block_row() { left_class_ = 0; }
  void end_block_row(ArithmeticDecoder& decoder) {
    contexts_.reset();
    decoder.reset_range();
  }

  // Whether a row is skipped; then the state takes its steps. To be called where the row begins
  // within a block.
  bool passes_over(uint64_t row, int& dq_state) const {
    if (!row_skip_ || !(skipped_[row >> 3] >> (row & 7) & 1)) return false;
    if (tensor_.dependent_quantization) dq_state = state_after_skipped_row(dq_state, tensor_.cols);
    return true;
  }

  // Decodes `count` elements that are coded one after the other, from element `first` on, to
  // out[0], out[1], …
  DecodeStatus decode_piece(ArithmeticDecoder& decoder, uint64_t first, uint64_t count,
                            int& dq_state, int32_t* out) {
    const bool plain = tensor_.is_plain(history_enabled_);
    if (tensor_.dependent_quantization) {
      return plain ? decode_on_path<true, true>(decoder, first, count, dq_state, out)
                   : decode_on_path<true, false>(decoder, first, count, dq_state, out);
    }
    return plain ? decode_on_path<false, true>(decoder, first, count, dq_state, out)
                 : decode_on_path<false, false>(decoder, first, count, dq_state, out);
  }

  // row_skip_enabled_flag, known after the preamble.
  bool skips_rows() const { return row_skip_; }
  // hist_dep_sig_prob_enabled_flag, known after the preamble.
  bool history_enabled() const { return history_enabled_; }

  // What entry points say of the point that the decoder has reached.
  BlockRowState state_at(const ArithmeticDecoder& decoder, int dq_state) const {
    return {decoder.position(), decoder.value8(), dq_state};
  }

 private:
  static constexpr uint64_t kOverrunInterval = 4096;  // integers between looks at overrun()

  template <bool kDq, bool kPlain>
  DecodeStatus decode_on_path(ArithmeticDecoder& decoder, uint64_t first, uint64_t count,
                              int& dq_state, int32_t* out) {
    return fast_paths_enabled ? decode_fast<kDq, kPlain>(decoder, first, count, dq_state, out)
                              : decode_segment<kDq, kPlain>(decoder, first, count, dq_state, out);
  }

  template <bool kDq, bool kPlain>
  NNR_FAST_PATH DecodeStatus decode_fast(ArithmeticDecoder& decoder, uint64_t first,
                                                 uint64_t count, int& dq_state, int32_t* out) {
    return decode_segment<kDq, kPlain>(decoder, first, count, dq_state, out);
  }

  template <bool kDq, bool kPlain>
  DecodeStatus decode_segment(ArithmeticDecoder& shared, uint64_t first, uint64_t count,
                              int& dq_state, int32_t* out) {
    ArithmeticDecoder decoder = shared;  // a local copy stays in registers
    int state = dq_state;
    int left = left_class_;
    int64_t extremes = 0;  // or of all |q|: one overflow check for many integers
    for (uint64_t i = first, end = first + count; i < end;) {
      for (const uint64_t stop = end_of_run(i, end, kOverrunInterval); i < stop; ++i) {
        const int64_t k = kPlain ? decode_plain(decoder, state, left)
                                 : decode_general(decoder, state, left, i);
        left = neighbour_class(k);
        const int64_t q = kDq ? reconstruction_index(k, state) : k;
        if (kDq) state = kNextState[state][k & 1];
        extremes |= q < 0 ? ~q : q;
        *out++ = static_cast<int32_t>(q);
      }
      if (decoder.overrun()) return DecodeStatus::kTruncated;
      if (extremes > INT32_MAX) return DecodeStatus::kIntegerOverflow;
    }
    shared = decoder;
    dq_state = state;
    left_class_ = left;
    return DecodeStatus::kOk;
  }

  int64_t decode_plain(ArithmeticDecoder& decoder, int state, int left) {
    CodingModel* models = contexts_.models;
    if (!decoder.decode(models[ContextLayout::kSignificance + 3 * state + left])) return 0;
    const unsigned negative = decoder.decode_unpredictable(models[ContextLayout::kSign + left]);
    CodingModel* greater = models + ContextLayout::kGreater + negative;
    const int n = tensor_.unary_length;
    int64_t magnitude = 1;
    for (int j = 0; decoder.decode(greater[2 * j]);) {
      ++magnitude;
      if (++j == n) {
        magnitude += decode_remainder(decoder, INT64_MAX);
        break;
      }
    }
    return negative ? -magnitude : magnitude;
  }

  // With a parent's integers, history, or the second edition's codebook rules.
  int64_t decode_general(ArithmeticDecoder& decoder, int state, int left, uint64_t i) {
    const int64_t parent = tensor_.parent_at(i);
    const bool history = history_enabled_ && tensor_.history_at(i);
    if (!decoder.decode(contexts_.models[ContextLayout::significance(state, left, parent, history)]))
      return 0;
    bool negative = range_.bounded && range_.positive == 0;
    if (range_.sign_coded())
      negative = decoder.decode(contexts_.models[ContextLayout::sign(left, parent)]) != 0;
    const int64_t largest =
        !range_.bounded ? INT64_MAX : (negative ? range_.negative : range_.positive);
    const int64_t magnitude = decode_magnitude(decoder, negative, parent, largest);
    return negative ? -magnitude : magnitude;
  }

  int64_t decode_magnitude(ArithmeticDecoder& decoder, bool negative, int64_t parent,
                           int64_t largest) {
    int64_t magnitude = 1;
    for (int j = 0; j < tensor_.unary_length; ++j) {
      if (magnitude >= largest) return magnitude;
      if (!decoder.decode(contexts_.models[layout_.greater(j, negative, parent)])) return magnitude;
      ++magnitude;
    }
    if (magnitude >= largest) return magnitude;
    return magnitude + decode_remainder(decoder, largest - magnitude);
  }

  // `largest`: largest remainder that the codebook allows; bins that it makes certain are absent.
  int64_t decode_remainder(ArithmeticDecoder& decoder, int64_t largest) {
    CodingModel* models = contexts_.models + layout_.remainder();
    int64_t base = 0;
    int k = 0;
    while (k < kMaxRemainderPrefix && largest >= base + (int64_t{1} << k) &&
           decoder.decode(models[k])) {
      base += int64_t{1} << k;
      ++k;
    }
    return base + decoder.decode_bypass(k);
  }

  TensorSyntax tensor_;
  ContextLayout layout_;
  CodebookRange range_;
  Contexts<Room> contexts_;
  uint8_t* skipped_;
  bool history_enabled_ = false;
  bool row_skip_ = false;
  int left_class_ = 0;
};

using TensorDecoder = BasicTensorDecoder<ContextRoom>;

// Reads the terminating bin and checks that codeword and buffer end together.
inline DecodeStatus finish_codeword(ArithmeticDecoder& decoder, size_t size) {
  if (decoder.out_of_range()) return DecodeStatus::kValueOutOfRange;
  if (decoder.overrun()) return DecodeStatus::kTruncated;
  if (!decoder.decode_terminate()) return DecodeStatus::kNotTerminated;
  if (decoder.overrun()) return DecodeStatus::kTruncated;
  if (!decoder.stop_bit_found()) return DecodeStatus::kBadStopBit;
  return decoder.bytes_read() < size ? DecodeStatus::kTrailingBytes : DecodeStatus::kOk;
}

}  // namespace nnr
