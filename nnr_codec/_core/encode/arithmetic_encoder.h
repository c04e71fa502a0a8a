// The binary arithmetic encoder (spec/bitstream.md, "Arithmetic encoder").
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

#include "../decode/probability_model.h"

namespace nnr {

// The coder's registers. They write into room that their owner has made, so that a copy of them
// can live in the processor's registers while many bins are coded.
class BinEncoder {
 public:
  // Bytes that a bin can push out at most; a bypass bin is one bit.
  static constexpr size_t kMaxBytesPerBin = 1;

  void encode(CodingModel& model, unsigned bin) {
    const uint32_t lps = model.lps_range(range_);
    const uint32_t mps = range_ - lps;
    const bool less_probable = bin != model.likelier;
    // Without branches: bins are hard to predict.
    low_ += mps & (0u - static_cast<uint32_t>(less_probable));
    const uint32_t range = __builtin_expect_with_probability(less_probable, 1, 0.5) ? lps : mps;
    const int shift = __builtin_clz(range) - (32 - kWindowBits);
    range_ = range << shift;
    model.update(bin);
    shift_out(shift);
  }

  // Encodes the `count` low bits of `bits`, 0..32, most significant first.
  void encode_bypass(uint32_t bits, int count) {
    while (count > 0) {
      const int part = count < kMaxBypass ? count : kMaxBypass;
      count -= part;
      const uint64_t value = (bits >> count) & ((1u << part) - 1);
      low_ = (low_ << part) + value * range_;
      pending_ += part;
      if (pending_ >= kFlushBits) flush();
    }
  }

  void reset_range() { range_ = 256; }

 private:
  friend class ArithmeticEncoder;
  static constexpr int kWindowBits = 9;
  static constexpr int kFlushBits = 32;  // shifts after which whole bytes leave
  static constexpr int kMaxBypass = 16;

  void shift_out(int shift) {
    low_ <<= shift;
    pending_ += shift;
    if (pending_ >= kFlushBits) flush();
  }

  // Moves the top four bytes out.
  void flush() {
    const uint32_t bytes = static_cast<uint32_t>(take_top(kFlushBits));
    for (int k = 0; k < 4; ++k) *next_++ = static_cast<uint8_t>(bytes >> (24 - 8 * k));
  }

  // Takes the top `bits` of the pending ones; what stands above them is a carry into the bytes
  // before.
  uint64_t take_top(int bits) {
    const int below = kWindowBits + pending_ - bits;
    const uint64_t top = low_ >> below;
    if (top >> bits) carry();
    low_ &= (uint64_t{1} << below) - 1;
    pending_ -= bits;
    return top;
  }

  void carry() {
    for (uint8_t* byte = next_ - 1; ++*byte == 0;) --byte;
  }

  uint8_t* next_ = nullptr;
  uint64_t low_ = 0;
  int pending_ = 0;  // bits of low above its nine-bit window
  uint32_t range_ = 510;
};

class ArithmeticEncoder {
 public:
  // The coder, with room for `bins` more bins; to be assigned back if a copy of it was used.
  BinEncoder& coder(size_t bins) {
    const size_t used = size();
    const size_t needed = used + bins * BinEncoder::kMaxBytesPerBin + kReserve;
    if (needed > buffer_.size()) {
      buffer_.resize(needed > 2 * used ? needed : 2 * used);
      coder_.next_ = buffer_.data() + used;
    }
    return coder_;
  }

  // Shifts done so far, in bits; what entry points count in.
  uint64_t position() const { return 8 * static_cast<uint64_t>(size()) + coder_.pending_; }
  // The nine bits of low in the window: with the finished codeword they give an entry's value8.
  unsigned low_window() const { return coder_.low_ & 0x1ff; }

  // Ends the codeword and returns it.
  std::vector<uint8_t> finish() {
    BinEncoder& end = coder(1);
    end.low_ += end.range_ - 2;
    end.shift_out(7);
    while (end.pending_ >= 8) *end.next_++ = static_cast<uint8_t>(end.take_top(8));
    // pending_ + 1 bits are left above the last eight, which are not written.
    const uint64_t tail = (((end.low_ >> 8) << 1) | 1) << (14 - end.pending_);
    if (tail >> 16) end.carry();
    *end.next_++ = static_cast<uint8_t>(tail >> 8);
    if (end.pending_ == 7) *end.next_++ = static_cast<uint8_t>(tail);
    buffer_.resize(size());
    return std::move(buffer_);
  }

 private:
  static constexpr size_t kReserve = 16;  // bytes pending in the registers, and the codeword's end

  size_t size() const { return buffer_.empty() ? 0 : static_cast<size_t>(coder_.next_ - buffer_.data()); }

  std::vector<uint8_t> buffer_;
  BinEncoder coder_;
};

// An entry point's leading bits of the value: bits position .. position + 8 of the finished
// codeword less low there.
inline unsigned entry_value8(const std::vector<uint8_t>& codeword, uint64_t position,
                             unsigned low_window) {
  const auto byte = [&](uint64_t i) -> unsigned { return i < codeword.size() ? codeword[i] : 0; };
  const uint64_t first = position >> 3;
  const unsigned three = byte(first) << 16 | byte(first + 1) << 8 | byte(first + 2);
  const unsigned nine = (three >> (15 - (position & 7))) & 0x1ff;
  return (nine - low_window) & 0x1ff;
}

}  // namespace nnr
