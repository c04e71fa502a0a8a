// The binary arithmetic decoder (spec/bitstream.md, "Arithmetic decoder").
//
// Never reads outside the buffer: past its end it sees zeros, and `overrun()` tells. The caller
// checks that now and then rather than at each bin, so damage costs bounded extra work.
#pragma once

#include <cstddef>
#include <cstdint>

#include "builtins.h"
#include "probability_model.h"

namespace nnr {

#if !defined(NNR_SMALL_TABLES)

// To divide numbers of up to 25 bits by ranges, 256..511 (Granlund and Montgomery 1994: exact, as
// the reciprocals are rounded up and have nine bits more than the numbers).
inline constexpr int kReciprocalShift = 34;
struct Reciprocals {
  uint32_t of_range[256];
  constexpr Reciprocals() : of_range() {
    for (uint64_t i = 0; i < 256; ++i)
      of_range[i] = static_cast<uint32_t>((uint64_t{1} << kReciprocalShift) / (256 + i) + 1);
  }
};
inline constexpr Reciprocals kReciprocals{};

#endif

class ArithmeticDecoder {
 public:
  ArithmeticDecoder() = default;

  // Starts at the codeword's first byte.
  ArithmeticDecoder(const uint8_t* data, size_t size) : data_(data), size_(size) {
    available_ = -kWindowBits;
    refill();
    check_value();
  }

  // Starts at an entry point: `position` bits (shifts) into the codeword, `value8` the leading
  // bits of the value there.
  ArithmeticDecoder(const uint8_t* data, size_t size, uint64_t position, unsigned value8)
      : data_(data), size_(size), range_(256) {
    window_ = static_cast<uint64_t>(value8) << kRangeShift;
    const uint64_t next_bit = position + kWindowBits;
    next_ = static_cast<size_t>(next_bit >> 3);
    available_ = 0;
    if (const unsigned used = next_bit & 7) {
      const uint64_t byte = next_ < size_ ? data_[next_] : 0;
      window_ |= ((byte << used) & 0xff) << (kRangeShift - 8);
      available_ = 8 - static_cast<int>(used);
      ++next_;
    }
    refill();
  }

  // Decodes one bin with an adaptive model. Every outcome has a path of its own, where the bin is a
  // constant: what follows from a bin that was predicted right does not wait for the arithmetic.
  unsigned decode(CodingModel& model) {
    const uint32_t lps = model.lps_range(range_);
    const uint32_t mps = range_ - lps;
    const bool likelier = model.likelier;
    if ((window_ >> kRangeShift) >= mps) {
      window_ -= static_cast<uint64_t>(mps) << kRangeShift;
      renormalize(lps, leading_zeros(lps) - (32 - kWindowBits));
      return update(model, !likelier);
    }
    renormalize(mps, static_cast<int>((mps >> 8) ^ 1));  // mps is never below 128
    return update(model, likelier);
  }

  // The same without a branch, for bins that no processor predicts.
  unsigned decode_unpredictable(CodingModel& model) {
    const uint32_t lps = model.lps_range(range_);
    const uint32_t mps = range_ - lps;
    const uint64_t scaled = static_cast<uint64_t>(mps) << kRangeShift;
    const uint64_t mask = uint64_t{0} - static_cast<uint64_t>(window_ >= scaled);
    window_ -= scaled & mask;
    const uint32_t range = mps ^ ((mps ^ lps) & static_cast<uint32_t>(mask));
    renormalize(range, leading_zeros(range) - (32 - kWindowBits));
    const unsigned bin = model.likelier ^ static_cast<unsigned>(mask & 1);
    model.update(bin);
    return bin;
  }

  // Decodes `count` equiprobable bins, 0..32, most significant first: the long division of the
  // value by the range, many bits at a time.
  uint32_t decode_bypass(int count) {
    uint32_t bits = 0;
#if defined(NNR_SMALL_TABLES)
    for (; count > 0; --count) {
      window_ <<= 1;
      if (--available_ < 0) refill();
      const uint64_t scaled = static_cast<uint64_t>(range_) << kRangeShift;
      const bool bin = window_ >= scaled;
      if (bin) window_ -= scaled;
      bits = bits << 1 | (bin ? 1 : 0);
    }
#else
    while (count > 0) {
      const int part = count < kMaxBypass ? count : kMaxBypass;
      count -= part;
      if (available_ < part) refill();
      const uint64_t dividend = window_ >> (kRangeShift - part);  // less than range << part
      const uint64_t quotient = (dividend * kReciprocals.of_range[range_ - 256]) >> kReciprocalShift;
      window_ -= (quotient * range_) << (kRangeShift - part);
      window_ <<= part;
      available_ -= part;
      bits = bits << part | static_cast<uint32_t>(quotient);
    }
#endif
    return bits;
  }

  // Decodes the bin that says whether the codeword ends.
  bool decode_terminate() {
    range_ -= 2;
    const bool bin = window_ >= static_cast<uint64_t>(range_) << kRangeShift;
    if (!bin && range_ < 256) {
      range_ <<= 1;
      window_ <<= 1;
      if (--available_ < 0) refill();
    }
    return bin;
  }

  // What happens to the interval between block rows.
  void reset_range() {
    range_ = 256;
    check_value();
  }

  // Shifts done since the codeword's start, in bits.
  uint64_t position() const {
    return 8 * static_cast<uint64_t>(next_) - kWindowBits - static_cast<uint64_t>(available_);
  }
  // The leading bits of the value, as entry points give them: 0..255 when the range is 256.
  unsigned value8() const { return static_cast<unsigned>(window_ >> kRangeShift); }
  // Bytes that the arithmetic decoder of the text would have read by now.
  uint64_t bytes_read() const { return 2 + (position() >> 3); }
  bool overrun() const { return bytes_read() > size_; }
  // The value has been outside the range at a point where no encoder leaves it.
  bool out_of_range() const { return out_of_range_; }

  // After a terminating bin of 1: whether the last byte read ends in the stop bit and zeros.
  bool stop_bit_found() const {
    const uint64_t last = bytes_read() - 1;
    return last < size_ && ((data_[last] << (position() & 7)) & 0xff) == 0x80;
  }

 private:
  static constexpr int kWindowBits = 9;    // width of range
  static constexpr int kMaxBypass = 16;    // bins of one division: its dividend has 25 bits
  static constexpr int kRangeShift = 54;   // range's place in the window; one bit above is spare

  void renormalize(uint32_t range, int shift) {
    range_ = range << shift;
    window_ <<= shift;
    available_ -= shift;
    if (NNR_UNLIKELY(available_ < 0)) refill();
  }

  static unsigned update(CodingModel& model, bool bin) {
    if (bin) {
      model.update(1);
      return 1;
    }
    model.update(0);
    return 0;
  }

  // Goes on with zeros then: all arithmetic here relies on a value below the range.
  void check_value() {
    if (window_ < static_cast<uint64_t>(range_) << kRangeShift) return;
    out_of_range_ = true;
    window_ = 0;
  }

  // Appends whole bytes below the bits that the window holds.
  void refill() {
    const int held = kWindowBits + available_ + 1;  // from the top, with the spare bit
    const size_t bytes = static_cast<size_t>(64 - held) >> 3;
    if (next_ + 8 <= size_) {
      window_ |= load_big_endian(data_ + next_) >> held;
    } else {
      for (size_t i = 0; i < bytes; ++i) {
        const uint64_t byte = next_ + i < size_ ? data_[next_ + i] : 0;
        window_ |= (byte << 56) >> (static_cast<size_t>(held) + 8 * i);
      }
    }
    next_ += bytes;
    available_ += static_cast<int>(8 * bytes);
  }

  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
  size_t next_ = 0;      // index of the next byte to load; may pass size_
  uint64_t window_ = 0;  // value, left-aligned below one spare bit
  int available_ = 0;    // bits held below the nine that range is compared with
  uint32_t range_ = 510;
  bool out_of_range_ = false;  // sticky
};

}  // namespace nnr
