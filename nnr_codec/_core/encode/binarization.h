// Turns a tensor's integers into lists of bins (spec/bitstream.md, "Coded tensor", "Binarization").
//
// A sink takes the lists: constexpr bool kWantsBypass, whether equiprobable bins are listed; bool
// wants(size_t integers), whether it wants the bins of the next so many integers; void
// receive(first, last), the list; void end_block_row(int dq_state), called at the end of every block
// row but the last. The arithmetic coder is one sink, the search for initialization indices another.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "../decode/tensor_syntax.h"

namespace nnr {

// What the encoder chose for a tensor, beyond its syntax.
struct TensorChoices {
  bool history_enabled = false;            // hist_dep_sig_prob_enabled_flag
  const uint8_t* skipped_rows = nullptr;   // rows flags; null: row_skip_enabled_flag is 0
};

// One bin, 2 * context + bin, or up to eight equiprobable ones: kBypass + 256 * count + bins.
using ListedBin = uint16_t;
inline constexpr ListedBin kBypass = 0x8000;

inline bool is_bypass(ListedBin entry) { return entry >= kBypass; }
inline int bypass_count(ListedBin entry) { return (entry >> 8) & 15; }
inline uint32_t bypass_bits(ListedBin entry) { return entry & 0xff; }

// Writes a list into room that the caller has made.
class BinWriter {
 public:
  explicit BinWriter(ListedBin* room) : next_(room) {}

  void bin(int context, unsigned bin) { *next_++ = static_cast<ListedBin>(2 * context + bin); }

  // The `count` low bits of `bits`, most significant first.
  void bypass(uint32_t bits, int count) {
    while (count > 0) {
      const int part = count < 8 ? count : 8;
      count -= part;
      *next_++ = static_cast<ListedBin>(kBypass | part << 8 | ((bits >> count) & ((1u << part) - 1)));
    }
  }

  ListedBin* end() const { return next_; }
  void advance(int entries) { next_ += entries; }

 private:
  ListedBin* next_;
};

// The lists of small integers, ready to be copied: which bins there are is hard to predict for a
// processor, so that branches cost more than the copy of a list of full length.
struct ListTemplates {
  static constexpr int kLength = 16;
  static constexpr int kLargest = 127;
  struct Template {
    ListedBin bins[kLength];
    int count;
  };
  std::vector<Template> templates;  // of -largest .. largest
  int32_t largest = 0;

  // Null for integers without a template.
  const Template* find(int32_t level) const {
    const size_t index = static_cast<uint32_t>(level) + static_cast<uint32_t>(largest);
    return index < templates.size() ? &templates[index] : nullptr;
  }
};

template <class Sink>
class Binarizer {
 public:
  Binarizer(const TensorSyntax& tensor, const TensorChoices& choices, Sink& sink)
      : tensor_(tensor), choices_(choices), layout_{tensor.unary_length}, range_(tensor),
        sink_(sink), plain_(tensor.is_plain(choices.history_enabled)),
        room_(kRun * (2 + tensor.unary_length + kRemainderEntries) + ListTemplates::kLength) {
    if (plain_ && tensor_.elements() >= kWorthTemplates) make_templates();
  }

  // `levels`: elements() integers as they are coded, before the doubling of dependent
  // quantization.
  void run(const int32_t* levels) {
    const uint64_t block_rows = tensor_.block_rows();
    for (uint64_t block_row = 0; block_row < block_rows; ++block_row) {
      start_block_row();
      const bool by_rows = choices_.skipped_rows != nullptr;
      for_each_segment(tensor_, block_row, by_rows, [&](uint64_t row, uint64_t first, uint64_t count) {
        if (tensor_.single_value())
          return false;  // nothing is coded, but block rows end all the same
        if (choices_.skipped_rows && choices_.skipped_rows[row])
          skip_row();
        else if (plain_)
          put_segment<true>(levels, first, count);
        else
          put_segment<false>(levels, first, count);
        return true;
      });
      if (block_row + 1 < block_rows) sink_.end_block_row(scan_.state);
    }
  }

  void start_block_row() { scan_.left = 0; }
  void start_at(int state) { scan_.state = state; }

  // Binarizes the integers that come next in scan order: levels[t] is that of element elements[t].
  void put(const int32_t* levels, const uint64_t* elements, uint64_t count) {
    for (uint64_t start = 0, stop; start < count; start = stop) {
      stop = end_of_run(start, count, kRun);
      const auto element_of = [&](uint64_t t) { return elements[start + t]; };
      if (plain_)
        put_run<true>(levels + start, stop - start, element_of);
      else
        put_run<false>(levels + start, stop - start, element_of);
    }
  }

 private:
  static constexpr uint64_t kRun = 256;             // integers of one list
  static constexpr uint64_t kWorthTemplates = 4096; // elements for which templates are made
  static constexpr size_t kRemainderEntries = kMaxRemainderPrefix + 1 + (kMaxRemainderPrefix + 7) / 8;

  // Where in the scan the binarization stands.
  struct ScanState {
    int state = 0;  // of dependent quantization
    int left = 0;   // class of the integer before
  };

  void make_templates() {
    std::vector<ListTemplates::Template> positive, negative;
    for (int32_t level = 0; level <= ListTemplates::kLargest; ++level)
      if (!make_template(level, positive) || !make_template(-level, negative)) break;
    templates_.largest = static_cast<int32_t>(positive.size()) - 1;
    templates_.templates.assign(negative.rbegin(), negative.rend() - 1);
    templates_.templates.insert(templates_.templates.end(), positive.begin(), positive.end());
  }

  // False, if the list is too long.
  bool make_template(int32_t level, std::vector<ListTemplates::Template>& templates) {
    BinWriter writer(room_.data());
    ScanState scan;
    put_integer<true>(writer, scan, level, 0);
    const auto count = writer.end() - room_.data();
    if (count > ListTemplates::kLength) return false;
    templates.emplace_back();
    std::memcpy(templates.back().bins, room_.data(), sizeof templates.back().bins);
    templates.back().count = static_cast<int>(count);
    return true;
  }

  void skip_row() {
    if (tensor_.dependent_quantization)
      scan_.state = state_after_skipped_row(scan_.state, tensor_.cols);
  }

  template <bool kPlain>
  void put_segment(const int32_t* levels, uint64_t first, uint64_t count) {
    for (uint64_t start = first, end = first + count, stop; start < end; start = stop) {
      stop = end_of_run(start, end, kRun);
      if (sink_.wants(stop - start))
        put_run<kPlain>(levels + start, stop - start, [&](uint64_t t) { return start + t; });
      else
        pass_over(levels, start, stop);
    }
  }

  // levels[t] is the integer of element element_of(t).
  template <bool kPlain, class ElementOf>
  void put_run(const int32_t* levels, uint64_t count, ElementOf element_of) {
    ScanState scan = scan_;
    BinWriter writer(room_.data());
    for (uint64_t t = 0; t < count; ++t) {
      const auto* known = kPlain ? templates_.find(levels[t]) : nullptr;
      if (known)
        copy_template(writer, scan, levels[t], *known);
      else
        put_integer<kPlain>(writer, scan, levels[t], element_of(t));
    }
    scan_ = scan;
    sink_.receive(room_.data(), writer.end());
  }

  void copy_template(BinWriter& writer, ScanState& scan, int32_t level,
                     const ListTemplates::Template& known) const {
    ListedBin* list = writer.end();
    std::memcpy(list, known.bins, sizeof known.bins);
    const int significance = ContextLayout::significance(scan.state, scan.left, 0, false);
    list[0] = static_cast<ListedBin>(2 * significance + (level != 0));
    list[1] = static_cast<ListedBin>(2 * ContextLayout::sign(scan.left, 0) + (level < 0));
    writer.advance(known.count);
    step(scan, level);
  }

  // Goes on to behind integers whose bins nobody wants.
  void pass_over(const int32_t* levels, uint64_t start, uint64_t stop) {
    if (tensor_.dependent_quantization)
      for (uint64_t i = start; i < stop; ++i) scan_.state = kNextState[scan_.state][levels[i] & 1];
    scan_.left = neighbour_class(levels[stop - 1]);
  }

  void step(ScanState& scan, int64_t level) const {
    scan.left = (level < 0) | (level > 0) << 1;  // neighbour_class, without branches
    if (tensor_.dependent_quantization) scan.state = kNextState[scan.state][level & 1];
  }

  template <bool kPlain>
  void put_integer(BinWriter& writer, ScanState& scan, int64_t level, uint64_t i) const {
    const int64_t parent = kPlain ? 0 : tensor_.parent_at(i);
    const bool history = !kPlain && choices_.history_enabled && tensor_.history_at(i);
    writer.bin(ContextLayout::significance(scan.state, scan.left, parent, history), level != 0);
    if (level != 0) put_nonzero<kPlain>(writer, scan.left, level, parent);
    step(scan, level);
  }

  template <bool kPlain>
  void put_nonzero(BinWriter& writer, int left, int64_t level, int64_t parent) const {
    const bool negative = level < 0;
    if (kPlain || range_.sign_coded()) writer.bin(ContextLayout::sign(left, parent), negative);
    const int64_t largest = kPlain || !range_.bounded ? INT64_MAX
                            : negative                ? range_.negative
                                                      : range_.positive;
    const int64_t magnitude = negative ? -level : level;
    const int n = tensor_.unary_length;
    for (int j = 0; j < n; ++j) {
      if (!kPlain && j + 1 >= largest) return;
      const unsigned greater = magnitude > j + 1;
      writer.bin(layout_.greater(j, negative, parent), greater);
      if (!greater) return;
    }
    if (kPlain || n + 1 < largest) put_remainder(writer, magnitude - (n + 1), largest - (n + 1));
  }

  void put_remainder(BinWriter& writer, int64_t remainder, int64_t largest) const {
    int64_t base = 0;
    int k = 0;
    while (k < kMaxRemainderPrefix && largest >= base + (int64_t{1} << k)) {
      const unsigned more = remainder >= base + (int64_t{1} << k);
      writer.bin(layout_.remainder() + k, more);
      if (!more) break;
      base += int64_t{1} << k;
      ++k;
    }
    if (Sink::kWantsBypass) writer.bypass(static_cast<uint32_t>(remainder - base), k);
  }

  const TensorSyntax& tensor_;
  const TensorChoices& choices_;
  ContextLayout layout_;
  CodebookRange range_;
  Sink& sink_;
  bool plain_;
  ScanState scan_;
  std::vector<ListedBin> room_;
  ListTemplates templates_;
};

}  // namespace nnr
