// Decodes one codeword: the payload of an INT, FLOAT or BLOCK data unit
// (spec/bitstream.md, "Payloads").
#pragma once

#include <cstddef>
#include <cstdint>

#include "tensor_decoder.h"

namespace nnr {

// One tensor of a codeword: what it is, and the caller's room for the result.
struct CodedTensor {
  TensorSyntax syntax;
  uint8_t* skipped_rows = nullptr;  // skipped_rows_bytes() of them, zeroed, if syntax.has_flags()
  int32_t* integers = nullptr;      // elements() int32, zeroed
  int32_t qp_delta = 0;
  bool history_enabled = false;     // hist_dep_sig_prob_enabled_flag
};

// Reads a two's complement number of `bits` bypass bins, 0..31; 0 bits give 0 (INT payloads).
inline int32_t read_qp_delta(ArithmeticDecoder& decoder, int bits) {
  if (bits == 0) return 0;
  const uint32_t raw = decoder.decode_bypass(bits);
  const uint32_t sign = uint32_t{1} << (bits - 1);
  return static_cast<int32_t>(raw ^ sign) - static_cast<int32_t>(sign);
}

// Walks through the entry points of a codeword's tensors and compares them with what is reached.
class EntryPointChecker {
 public:
  EntryPointChecker(const BlockRowState* entries, size_t count) : entries_(entries), count_(count) {}

  // Positions in `entries` are differences to the block row before; the first of a tensor counts
  // from `start`, where the tensor's first block row begins.
  void start_tensor(uint64_t start) { previous_ = start; }

  bool matches(const BlockRowState& reached) {
    if (next_ >= count_) return count_ == 0;  // no list at all: nothing to compare
    BlockRowState expected = entries_[next_++];
    expected.position += previous_;
    previous_ = reached.position;
    return expected == reached;
  }

 private:
  const BlockRowState* entries_;
  size_t count_;
  size_t next_ = 0;
  uint64_t previous_ = 0;
};

// Decodes one tensor straight through.
inline DecodeStatus decode_tensor(ArithmeticDecoder& decoder, CodedTensor& tensor,
                                  EntryPointChecker& entries) {
  TensorDecoder tensor_decoder(tensor.syntax, tensor.skipped_rows);
  DecodeStatus status = tensor_decoder.read_preamble(decoder);
  tensor.history_enabled = tensor_decoder.history_enabled();
  entries.start_tensor(decoder.position());
  int dq_state = 0;
  const uint64_t block_rows = tensor.syntax.block_rows();
  for (uint64_t row = 0; row < block_rows && status == DecodeStatus::kOk; ++row) {
    status = tensor_decoder.decode_block_row(decoder, row, dq_state, tensor.integers);
    if (status != DecodeStatus::kOk || row + 1 == block_rows) break;
    if (!entries.matches(tensor_decoder.state_at(decoder, dq_state)))
      status = DecodeStatus::kEntryPointMismatch;
  }
  return status;
}

// Decodes all tensors of a codeword, one after the other; `qp_bits` is 0 for INT payloads.
inline DecodeStatus decode_codeword(const uint8_t* data, size_t size, CodedTensor* tensors,
                                    size_t count, int qp_bits, EntryPointChecker entries) {
  ArithmeticDecoder decoder(data, size);
  for (size_t i = 0; i < count; ++i) {
    tensors[i].qp_delta = read_qp_delta(decoder, qp_bits);
    const DecodeStatus status = decode_tensor(decoder, tensors[i], entries);
    if (status != DecodeStatus::kOk) return status;
  }
  return finish_codeword(decoder, size);
}

}  // namespace nnr
