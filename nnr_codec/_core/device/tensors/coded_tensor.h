// The integers of one coded tensor, in row-major order, as many at a time as are asked for.
#pragma once

#include "../../decode/codeword.h"
#include "../headers/data_unit.h"
#include "../support/config.h"
#include "../support/failure.h"
#include "../support/memory.h"
#include "series.h"

namespace nnr::device {

// What decoding one tensor needs to know.
struct CodingContext {
  ArithmeticDecoder* decoder = nullptr;  // has reached the tensor
  EntryPointReader* entries = nullptr;   // of the unit, has reached the tensor's
  bool is_second_edition = false;
  const SeriesTensor* base = nullptr;  // the tensor in earlier bitstreams, or null
  SeriesTensor* kept = nullptr;        // where its integers go to, or null
};

class CodedTensor {
 public:
  explicit CodedTensor(const nnr_memory& memory)
      : models_(memory), index_(memory), skipped_(memory), band_(memory) {}

  // Begins a tensor: reads its flags, skipped rows and initialization indices.
  bool start(const CodingContext& context, const DataUnit& unit, const UnitTensor& tensor,
             Failure& failure);

  // hist_dep_sig_prob_enabled_flag.
  bool has_history() const { return decoder_->history_enabled(); }
  // Whether the integers go to a series.
  bool keeps() const { return context_.kept != nullptr; }
  // Integers that were not read yet.
  uint64_t left() const { return syntax_.elements() - next_; }

  // Decodes the next `count` integers, at most left().
  bool read(int32_t* integers, uint64_t count, Failure& failure);

 private:
  using Decoder = BasicTensorDecoder<BorrowedContextRoom>;

  bool allocate(Failure& failure, BorrowedContextRoom& room);
  bool read_rows(int32_t* integers, uint64_t count, Failure& failure);
  bool read_band(Failure& failure);
  bool end_band(Failure& failure);
  void keep(const int32_t* integers, uint64_t first, uint64_t count);

  Array<uint8_t> models_;
  Array<uint8_t> index_;    // of the models
  Array<uint8_t> skipped_;  // a bit for each row
  Array<int32_t> band_;     // a block row, of tensors that are scanned in blocks
  alignas(Decoder) unsigned char place_[sizeof(Decoder)];
  Decoder* decoder_ = nullptr;
  CodingContext context_;
  TensorSyntax syntax_;
  uint64_t next_ = 0;                       // elements that were read
  uint64_t block_row_ = 0;                  // block rows that were decoded
  uint64_t band_start_ = 0, band_end_ = 0;  // elements of the band
  uint64_t start_position_ = 0;             // of the block row, in the codeword
  int dq_state_ = 0;
  bool row_is_skipped_ = false;
};

// Notes what decoding a codeword came to.
bool check_status(DecodeStatus status, Failure& failure);

}  // namespace nnr::device
