// What the header of a data unit says of one coded tensor, and the rules that follow from it for
// reader and writer alike (spec/bitstream.md, "Coded tensor" and "Scan orders and entry points").
#pragma once

#include <cstdint>

#include "probability_model.h"

namespace nnr {

// One tensor, coded as a matrix.
struct TensorSyntax {
  uint64_t rows = 1;
  uint64_t cols = 1;
  int unary_length = 10;             // N, 1..256
  bool dependent_quantization = false;
  int scan_order = 0;                // 0: row by row; s: blocks of side 4 << s
  bool second_edition = false;       // general_profile_idc 1
  int64_t codebook_size = 0;         // 0: none
  int64_t codebook_zero_offset = 0;
  bool parent_present = false;       // parent_node_id_present_flag
  bool temporal_contexts = false;    // temporal_context_modeling_flag
  const int32_t* parent = nullptr;   // the parent's integers, or null where all are zero
  const uint8_t* history = nullptr;  // non-zero where an earlier stream's integer was, or null

  // The parent's integer at element i as contexts see it, and whether history is non-zero there.
  int64_t parent_at(uint64_t i) const { return temporal_contexts && parent ? parent[i] : 0; }
  bool history_at(uint64_t i) const { return history && history[i] != 0; }

  uint64_t elements() const { return rows * cols; }
  bool is_matrix() const { return rows > 1 && cols > 1; }
  int effective_scan_order() const { return is_matrix() ? scan_order : 0; }
  uint64_t block_side() const { return uint64_t{4} << effective_scan_order(); }
  uint64_t block_rows() const {
    return effective_scan_order() == 0 ? 1 : (rows + block_side() - 1) / block_side();
  }

  // The codebook as the integers' binarization sees it: the first edition ignores it.
  int64_t coded_codebook_size() const { return second_edition ? codebook_size : 0; }
  int64_t coded_zero_offset() const { return second_edition ? codebook_zero_offset : 0; }
  bool single_value() const { return coded_codebook_size() == 1; }
  // hist_dep_sig_prob_enabled_flag and row_skip_enabled_flag exist.
  bool has_flags() const { return second_edition && is_matrix() && !single_value(); }

  // Bytes that hold a bit for each row.
  uint64_t skipped_rows_bytes() const { return (rows + 7) / 8; }

  // Neither parent, history nor codebook rules: the common case, with a loop of its own.
  bool is_plain(bool history_enabled) const {
    return !temporal_contexts && !history_enabled && coded_codebook_size() == 0;
  }
};

// Largest |v| that the codebook allows on one side, and what the sign bin needs to know.
struct CodebookRange {
  bool bounded = false;
  int64_t negative = 0;  // indices below zero_offset
  int64_t positive = 0;  // indices above it

  explicit CodebookRange(const TensorSyntax& tensor) {
    if (tensor.coded_codebook_size() == 0) return;
    bounded = true;
    negative = tensor.coded_zero_offset();
    positive = tensor.coded_codebook_size() - 1 - tensor.coded_zero_offset();
  }
  bool sign_coded() const { return !bounded || (negative != 0 && positive != 0); }
  int64_t largest() const { return negative > positive ? negative : positive; }
};

// Where a run of at most `longest` elements ends that starts at `start`, in a piece that ends at
// `end`.
inline uint64_t end_of_run(uint64_t start, uint64_t end, uint64_t longest) {
  return end - start < longest ? end : start + longest;
}

// Calls visit(context) for each context whose initialization index is in the bitstream, in order.
template <class Visit>
void for_each_indexed_context(const TensorSyntax& tensor, bool history_enabled, Visit&& visit) {
  using Layout = ContextLayout;
  const Layout layout{tensor.unary_length};
  const CodebookRange range(tensor);
  const int n = tensor.unary_length;
  const bool dq = tensor.dependent_quantization;
  const auto visit_run = [&](int first, int count) {
    for (int i = 0; i < count; ++i) visit(first + i);
  };
  if (!tensor.single_value()) {
    visit_run(Layout::kSignificance, dq ? 24 : 3);
    if (tensor.temporal_contexts) visit_run(Layout::kSignificanceParent, dq ? 16 : 2);
    if (history_enabled) visit_run(Layout::kSignificanceHistory, dq ? 8 : 1);
    if (range.sign_coded()) visit_run(Layout::kSign, tensor.temporal_contexts ? 5 : 3);
  }
  for (int a = 0; a < 2 * n; ++a)
    if (!range.bounded || a < 2 * range.largest()) visit(Layout::kGreater + a);
  if (tensor.temporal_contexts)
    for (int a = 0; a < 2 * n; ++a)
      if (!range.bounded || a < 2 * (range.largest() - 1)) visit(layout.greater_parent() + a);
  int64_t reached = n - 1;
  for (int a = 0; a < kMaxRemainderPrefix; ++a) {
    reached += int64_t{1} << a;
    if (!range.bounded || reached < range.largest()) visit(layout.remainder() + a);
  }
}

// Calls visit(row, first element, count) for each piece of a row within block row `block_row`, in
// scan order; if !by_rows, several rows may be one piece. Stops when visit returns false.
template <class Visit>
void for_each_segment(const TensorSyntax& tensor, uint64_t block_row, bool by_rows, Visit&& visit) {
  const bool blocks = tensor.effective_scan_order() > 0;
  if (!blocks && !by_rows) {
    visit(0, 0, tensor.elements());
    return;
  }
  const uint64_t height = blocks ? tensor.block_side() : tensor.rows;
  const uint64_t width = blocks ? tensor.block_side() : tensor.cols;
  const uint64_t top = block_row * height;
  const uint64_t bottom = end_of_run(top, tensor.rows, height);
  for (uint64_t left = 0; left < tensor.cols; left += width) {
    const uint64_t count = end_of_run(left, tensor.cols, width) - left;
    for (uint64_t row = top; row < bottom; ++row)
      if (!visit(row, row * tensor.cols + left, count)) return;
  }
}

// The same over all block rows of a tensor.
template <class Visit>
void for_each_segment(const TensorSyntax& tensor, bool by_rows, Visit&& visit) {
  for (uint64_t block_row = 0; block_row < tensor.block_rows(); ++block_row)
    for_each_segment(tensor, block_row, by_rows, visit);
}

// The dq state after a row that is skipped: `cols` steps with parity 0.
inline int state_after_skipped_row(int state, uint64_t cols) {
  for (uint64_t i = 0; i < cols % 4; ++i) state = kNextState[state][0];  // cycles of 1, 2 or 4
  return state;
}

// Reconstruction index of integer k in dq state `state`.
inline int64_t reconstruction_index(int64_t k, int state) {
  const int64_t sign = (k > 0) - (k < 0);
  return 2 * k - sign * (state & 1);
}

}  // namespace nnr
