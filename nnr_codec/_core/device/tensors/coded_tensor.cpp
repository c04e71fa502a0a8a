#include "coded_tensor.h"

#include <new>

namespace nnr::device {

namespace {

TensorSyntax syntax_of(const CodingContext& context, const DataUnit& unit,
                       const UnitTensor& tensor) {
  TensorSyntax syntax;
  syntax.rows = tensor.rows;
  syntax.cols = tensor.cols;
  syntax.unary_length = unit.unary_length;
  syntax.dependent_quantization = unit.dependent_quantization && unit.payload_type != kInt;
  syntax.scan_order = unit.scan_order;
  syntax.second_edition = context.is_second_edition;
  if (tensor.codebook) {
    syntax.codebook_size = static_cast<int64_t>(tensor.codebook->values.size());
    syntax.codebook_zero_offset = tensor.codebook->zero_offset;
  }
  syntax.parent_present = unit.parent_present;
  syntax.temporal_contexts = unit.temporal_contexts;
  if (context.base) {
    syntax.parent = context.base->latest;
    syntax.history = context.base->history;
  }
  return syntax;
}

}  // namespace

bool check_status(DecodeStatus status, Failure& failure) {
  switch (status) {
    case DecodeStatus::kOk: return true;
    case DecodeStatus::kTruncated:
      return failure.set(NNR_TRUNCATED, "the codeword goes on past the unit's end");
    case DecodeStatus::kIntegerOverflow: return failure.invalid("an integer does not fit 32 bits");
    case DecodeStatus::kEntryPointMismatch:
      return failure.invalid("an entry point differs from its block row");
    case DecodeStatus::kNotTerminated:
      return failure.invalid("the codeword does not end where its integers do");
    case DecodeStatus::kBadStopBit: return failure.invalid("no stop bit at the codeword's end");
    case DecodeStatus::kValueOutOfRange:
      return failure.invalid("the codeword is none that an encoder writes");
    default: return failure.invalid("bytes are left behind the codeword");
  }
}

bool CodedTensor::start(const CodingContext& context, const DataUnit& unit,
                        const UnitTensor& tensor, Failure& failure) {
  context_ = context;
  syntax_ = syntax_of(context, unit, tensor);
  next_ = block_row_ = band_start_ = band_end_ = 0;
  dq_state_ = 0;
  row_is_skipped_ = false;
  BorrowedContextRoom room{};
  if (!allocate(failure, room)) return false;
  decoder_ = new (place_) Decoder(syntax_, skipped_.data(), room);
  if (!check_status(decoder_->read_preamble(*context.decoder), failure)) return false;
  start_position_ = context.decoder->position();
  decoder_->begin_block_row();
  if (tensor.role <= NNR_FACTOR_H && syntax_.block_rows() == 1) {
    // A matrix of one column has entry points too, which say nothing: it is scanned row by row.
    for (uint64_t left = unit.entry_points_of(tensor.rows); left > 0; --left)
      context.entries->next();
  }
  return true;
}

bool CodedTensor::allocate(Failure& failure, BorrowedContextRoom& room) {
  const uint64_t count = static_cast<uint64_t>(ContextLayout{syntax_.unary_length}.count());
  const uint64_t flags = syntax_.has_flags() ? syntax_.skipped_rows_bytes() : 0;
  const uint64_t side = syntax_.block_side();
  const uint64_t band_rows = syntax_.effective_scan_order() == 0 ? 0
                             : side < syntax_.rows               ? side
                                                                 : syntax_.rows;
  if (!models_.reserve((count + 1) * sizeof(CodingModel)) || !index_.reserve(count) ||
      !skipped_.reserve(flags) || !band_.reserve(band_rows * syntax_.cols))
    return failure.no_memory();
  if (flags) std::memset(skipped_.data(), 0, static_cast<size_t>(flags));
  const uintptr_t start = reinterpret_cast<uintptr_t>(models_.data());
  const size_t offset =
      (alignof(CodingModel) - start % alignof(CodingModel)) % alignof(CodingModel);
  room.models = reinterpret_cast<CodingModel*>(models_.data() + offset);
  room.index = index_.data();
  return true;
}

bool CodedTensor::read(int32_t* integers, uint64_t count, Failure& failure) {
  if (syntax_.effective_scan_order() == 0) return read_rows(integers, count, failure);
  while (count > 0) {
    if (next_ == band_end_ && !read_band(failure)) return false;
    const uint64_t part = count < band_end_ - next_ ? count : band_end_ - next_;
    std::memcpy(integers, band_.data() + (next_ - band_start_),
                static_cast<size_t>(part) * sizeof *integers);
    integers += part;
    next_ += part;
    count -= part;
  }
  return true;
}

bool CodedTensor::read_rows(int32_t* integers, uint64_t count, Failure& failure) {
  const bool by_rows = decoder_->skips_rows();
  while (count > 0) {
    uint64_t part = count;
    if (by_rows) {
      const uint64_t row = next_ / syntax_.cols, column = next_ % syntax_.cols;
      if (column == 0) row_is_skipped_ = decoder_->passes_over(row, dq_state_);
      part = count < syntax_.cols - column ? count : syntax_.cols - column;
    }
    if (row_is_skipped_ || syntax_.single_value()) {
      std::memset(integers, 0, static_cast<size_t>(part) * sizeof *integers);
    } else if (!check_status(
                   decoder_->decode_piece(*context_.decoder, next_, part, dq_state_, integers),
                   failure)) {
      return false;
    }
    keep(integers, next_, part);
    integers += part;
    next_ += part;
    count -= part;
  }
  return true;
}

bool CodedTensor::read_band(Failure& failure) {
  band_start_ = band_end_;
  const uint64_t rows = syntax_.block_side(), left = syntax_.rows - block_row_ * rows;
  const uint64_t elements = (left < rows ? left : rows) * syntax_.cols;
  band_end_ = band_start_ + elements;
  std::memset(band_.data(), 0, static_cast<size_t>(elements) * sizeof(int32_t));
  decoder_->begin_block_row();
  DecodeStatus status = DecodeStatus::kOk;
  if (!syntax_.single_value()) {
    for_each_segment(syntax_, block_row_, true, [&](uint64_t row, uint64_t first, uint64_t count) {
      if (decoder_->passes_over(row, dq_state_)) return true;
      status = decoder_->decode_piece(*context_.decoder, first, count, dq_state_,
                                      band_.data() + (first - band_start_));
      return status == DecodeStatus::kOk;
    });
  }
  if (!check_status(status, failure)) return false;
  keep(band_.data(), band_start_, elements);
  return ++block_row_ == syntax_.block_rows() || end_band(failure);
}

// Does what stands between block rows, and compares the next one's start with its entry point.
bool CodedTensor::end_band(Failure& failure) {
  decoder_->end_block_row(*context_.decoder);
  const BlockRowState reached = decoder_->state_at(*context_.decoder, dq_state_);
  BlockRowState expected = context_.entries->next();
  expected.position += start_position_;
  start_position_ = reached.position;
  return expected == reached || check_status(DecodeStatus::kEntryPointMismatch, failure);
}

void CodedTensor::keep(const int32_t* integers, uint64_t first, uint64_t count) {
#if NNR_WITH_UPDATES
  if (!context_.kept) return;
  for (uint64_t i = 0; i < count; ++i) {
    context_.kept->latest[first + i] = integers[i];
    context_.kept->history[first + i] |= integers[i] != 0;
  }
#else
  (void)integers, (void)first, (void)count;
#endif
}

}  // namespace nnr::device
