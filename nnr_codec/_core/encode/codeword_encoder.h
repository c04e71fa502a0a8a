// Encodes the codeword of a data unit: one tensor or several, with their entry points
// (spec/bitstream.md, "Payloads", "Scan orders and entry points").
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../decode/tensor_decoder.h"
#include "arithmetic_encoder.h"
#include "initialization_search.h"
#include "reconstruction.h"

namespace nnr {

// One tensor to encode.
struct TensorToEncode {
  TensorSyntax syntax;
  const int32_t* levels = nullptr;  // elements() integers, before the doubling
  int32_t qp_delta = 0;
  bool row_skipping = false;        // flag rows that are all zero
  bool history_enabled = false;     // hist_dep_sig_prob_enabled_flag
  bool search_initialization = true;
  std::vector<uint8_t> indices;     // by context: given if not searched (empty: all 0), else chosen
};

inline bool is_zero_row(const int32_t* levels, uint64_t cols) {
  return std::all_of(levels, levels + cols, [](int32_t level) { return level == 0; });
}

// The tensor's rows that row skipping leaves out; none if it is off or does not exist.
inline std::vector<uint8_t> skipped_rows(const TensorToEncode& tensor) {
  if (!tensor.syntax.has_flags() || !tensor.row_skipping) return {};
  const uint64_t cols = tensor.syntax.cols;
  std::vector<uint8_t> zero(tensor.syntax.rows);
  for (uint64_t row = 0; row < tensor.syntax.rows; ++row)
    zero[row] = is_zero_row(tensor.levels + row * cols, cols);
  return zero;
}

// The integers that a decoder finds: the reconstruction indices of the levels. `integers`: zeroed.
inline void reconstruct(const TensorToEncode& tensor, int32_t* integers) {
  const TensorSyntax& syntax = tensor.syntax;
  if (syntax.single_value()) return;
  const std::vector<uint8_t> skipped = skipped_rows(tensor);
  Reconstruction reconstruction(syntax);
  for_each_segment(syntax, !skipped.empty(), [&](uint64_t row, uint64_t first, uint64_t count) {
    if (!skipped.empty() && skipped[row])
      reconstruction.skip_row();
    else
      reconstruction.run(tensor.levels + first, count, integers + first);
    return true;
  });
}

// Sink that counts bins.
struct BinCounter {
  static constexpr bool kWantsBypass = true;
  uint64_t bins = 0;

  bool wants(size_t) const { return true; }
  void receive(const ListedBin* first, const ListedBin* last) {
    for (; first != last; ++first) bins += is_bypass(*first) ? bypass_count(*first) : 1;
  }
  void end_block_row(int) {}
};

// Bins of the tensor's integers, context-coded and bypass: what coding time is measured against.
inline uint64_t count_bins(const TensorToEncode& tensor) {
  const std::vector<uint8_t> skipped = skipped_rows(tensor);
  const TensorChoices choices{tensor.history_enabled, skipped.empty() ? nullptr : skipped.data()};
  BinCounter counter;
  Binarizer<BinCounter>(tensor.syntax, choices, counter).run(tensor.levels);
  return counter.bins;
}

struct EncodedCodeword {
  std::vector<uint8_t> bytes;
  std::vector<BlockRowState> entry_points;  // positions as differences, as the header has them
};

// Sink that codes bins, and notes where block rows start.
class CodingSink {
 public:
  static constexpr bool kWantsBypass = true;

  CodingSink(ArithmeticEncoder& encoder, const ContextLayout& layout) : encoder_(encoder) {
    contexts_.start(layout);
  }

  bool wants(size_t) const { return true; }

  void receive(const ListedBin* first, const ListedBin* last) {
    if (fast_paths_enabled)
      code_fast(first, last);
    else
      code(first, last);
  }

  void bin(int context, unsigned bin) { encoder_.coder(1).encode(contexts_.models[context], bin); }
  void bypass(uint32_t bits, int count) {
    encoder_.coder(static_cast<size_t>(count)).encode_bypass(bits, count);
  }
  void end_block_row(int dq_state) {
    contexts_.reset();
    starts.push_back({encoder_.position(), encoder_.low_window(), dq_state});
    encoder_.coder(0).reset_range();
  }
  void set_index(int context, int index) { contexts_.set(context, index); }

  std::vector<BlockRowState> starts;  // value8 still holds low there

 private:
  void code(const ListedBin* first, const ListedBin* last) {
    BinEncoder& shared = encoder_.coder(static_cast<size_t>(last - first));
    BinEncoder coder = shared;  // a local copy stays in registers
    for (; first != last; ++first) {
      if (is_bypass(*first))
        coder.encode_bypass(bypass_bits(*first), bypass_count(*first));
      else
        coder.encode(contexts_.models[*first >> 1], *first & 1);
    }
    shared = coder;
  }

  NNR_FAST_PATH void code_fast(const ListedBin* first, const ListedBin* last) {
    code(first, last);
  }

  ArithmeticEncoder& encoder_;
  ContextSet contexts_;
};

class CodewordEncoder {
 public:
  void encode_qp_delta(int32_t qp_delta, int bits) {
    encoder_.coder(static_cast<size_t>(bits)).encode_bypass(static_cast<uint32_t>(qp_delta), bits);
  }

  void encode_tensor(TensorToEncode& tensor) {
    const TensorSyntax& syntax = tensor.syntax;
    const ContextLayout layout{syntax.unary_length};
    const std::vector<uint8_t> skipped = skipped_rows(tensor);
    const TensorChoices choices{tensor.history_enabled, skipped.empty() ? nullptr : skipped.data()};
    choose_indices(tensor, choices, layout);

    CodingSink sink(encoder_, layout);
    encode_flags(tensor, choices, layout, sink);
    encode_indices(tensor, layout, sink);
    if (syntax.block_rows() > 1) encoder_.coder(0).reset_range();
    tensor_starts_.push_back(encoder_.position());
    Binarizer<CodingSink>(syntax, choices, sink).run(tensor.levels);
    block_row_starts_.push_back(std::move(sink.starts));
  }

  EncodedCodeword finish() {
    EncodedCodeword result;
    result.bytes = encoder_.finish();
    for (size_t t = 0; t < tensor_starts_.size(); ++t) {
      uint64_t previous = tensor_starts_[t];
      for (BlockRowState entry : block_row_starts_[t]) {
        const uint64_t position = entry.position;
        entry.value8 = entry_value8(result.bytes, position, entry.value8);
        entry.position -= previous;
        previous = position;
        result.entry_points.push_back(entry);
      }
    }
    return result;
  }

 private:
  static void choose_indices(TensorToEncode& tensor, const TensorChoices& choices,
                             const ContextLayout& layout) {
    tensor.indices.resize(layout.count(), 0);
    if (!tensor.search_initialization) return;
    InitializationSearch search(layout);
    Binarizer<InitializationSearch>(tensor.syntax, choices, search).run(tensor.levels);
    search.choose(tensor.syntax, choices.history_enabled, tensor.indices.data());
  }

  void encode_flags(const TensorToEncode& tensor, const TensorChoices& choices,
                    const ContextLayout& layout, CodingSink& sink) {
    if (!tensor.syntax.has_flags()) return;
    if (tensor.syntax.parent_present) sink.bypass(tensor.history_enabled, 1);
    sink.bypass(choices.skipped_rows != nullptr, 1);
    if (!choices.skipped_rows) return;
    for (uint64_t row = 0; row < tensor.syntax.rows; ++row)
      sink.bin(layout.row_skip_flag(), choices.skipped_rows[row]);
  }

  static void encode_indices(const TensorToEncode& tensor, const ContextLayout& layout,
                             CodingSink& sink) {
    for_each_indexed_context(tensor.syntax, tensor.history_enabled, [&](int context) {
      const int index = tensor.indices[context];
      sink.bin(layout.index_flag(), index != 0);
      if (index != 0) sink.bypass(index - 1, 3);
      sink.set_index(context, index);
    });
  }

  ArithmeticEncoder encoder_;
  std::vector<uint64_t> tensor_starts_;
  std::vector<std::vector<BlockRowState>> block_row_starts_;
};

}  // namespace nnr
