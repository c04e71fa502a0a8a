#include "inflate.h"

namespace nnr::device {

namespace {

constexpr int kMaxBits = 15, kLengthSymbols = 288, kDistanceSymbols = 30, kEndOfBlock = 256;

constexpr uint16_t kLengthBase[29] = {3,  4,  5,  6,   7,   8,   9,   10,  11, 13,
                                      15, 17, 19, 23,  27,  31,  35,  43,  51, 59,
                                      67, 83, 99, 115, 131, 163, 195, 227, 258};
constexpr uint8_t kLengthBits[29] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2,
                                     2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0};
constexpr uint16_t kDistanceBase[30] = {
    1,   2,   3,   4,   5,   7,    9,    13,   17,   25,   33,   49,   65,    97,    129,
    193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577};
constexpr uint8_t kCodeOrder[19] = {16, 17, 18, 0, 8,  7, 9,  6, 10, 5,
                                    11, 4,  12, 3, 13, 2, 14, 1, 15};

// A canonical Huffman code: the symbols by length, and how many there are of each.
struct Code {
  uint16_t counts[kMaxBits + 1] = {};
  uint16_t symbols[kLengthSymbols] = {};

  // Whether the lengths are those of a code; `incomplete` codes have one symbol at most.
  bool build(const uint8_t* lengths, int count) {
    for (uint16_t& number : counts) number = 0;
    for (int i = 0; i < count; ++i) ++counts[lengths[i]];
    int left = 1;
    for (int length = 1; length <= kMaxBits; ++length) {
      left = 2 * left - counts[length];
      if (left < 0) return false;
    }
    uint16_t offsets[kMaxBits + 1] = {};
    for (int length = 1; length < kMaxBits; ++length)
      offsets[length + 1] = static_cast<uint16_t>(offsets[length] + counts[length]);
    for (int i = 0; i < count; ++i)
      if (lengths[i]) symbols[offsets[lengths[i]]++] = static_cast<uint16_t>(i);
    return left == 0 || count - counts[0] <= 1;
  }
};

class Inflater {
 public:
  Inflater(const uint8_t* data, size_t size, uint64_t most, Array<char>& out, size_t& written)
      : data_(data), size_(size), most_(most), out_(out), written_(written) {}

  InflateStatus run() {
    written_ = 0;
    constexpr int kDeflate = 8, kDictionary = 0x20;
    if (size_ < 6 || (data_[0] & 15) != kDeflate || data_[0] >> 4 > 7 || (data_[1] & kDictionary) ||
        (data_[0] * 256 + data_[1]) % 31 != 0)
      return InflateStatus::kDamaged;
    next_ = 2;
    bool is_last = false;
    while (!is_last && ok()) {
      is_last = bits(1) != 0;
      const uint32_t type = bits(2);
      if (type == 0) {
        copy_stored();
      } else if (type == 1) {
        read_fixed();
      } else if (type == 2) {
        read_dynamic();
      } else {
        status_ = InflateStatus::kDamaged;
      }
    }
    if (ok()) check_end();
    return status_;
  }

 private:
  bool ok() const { return status_ == InflateStatus::kOk; }
  void damaged() {
    if (ok()) status_ = InflateStatus::kDamaged;
  }

  uint32_t bits(int count) {
    while (held_bits_ < count) {
      if (next_ == size_) {
        damaged();
        return 0;
      }
      held_ |= static_cast<uint32_t>(data_[next_++]) << held_bits_;
      held_bits_ += 8;
    }
    const uint32_t value = held_ & ((uint32_t{1} << count) - 1);
    held_ >>= count;
    held_bits_ -= count;
    return value;
  }

  void put(uint8_t byte) {
    if (written_ == most_) {
      status_ = InflateStatus::kTooLong;
    } else if (written_ == out_.size() &&
               !out_.grow(written_ ? 2 * uint64_t{written_} : 256, written_)) {
      status_ = InflateStatus::kNoMemory;
    } else {
      out_[written_++] = static_cast<char>(byte);
    }
  }

  void copy_stored() {
    held_ = 0;  // less than a byte of it is left
    held_bits_ = 0;
    const uint32_t length = bits(8) | bits(8) << 8, inverse = bits(8) | bits(8) << 8;
    if (length != (~inverse & 0xffff)) damaged();
    for (uint32_t i = 0; i < length && ok(); ++i) put(static_cast<uint8_t>(bits(8)));
  }

  void read_fixed() {
    uint8_t lengths[kLengthSymbols];
    for (int i = 0; i < kLengthSymbols; ++i)
      lengths[i] = i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8;
    lengths_.build(lengths, kLengthSymbols);
    for (int i = 0; i < kDistanceSymbols; ++i) lengths[i] = 5;
    distances_.build(lengths, kDistanceSymbols);
    read_codes();
  }

  void read_dynamic() {
    const int length_count = static_cast<int>(bits(5)) + 257;
    const int distance_count = static_cast<int>(bits(5)) + 1;
    const int code_count = static_cast<int>(bits(4)) + 4;
    uint8_t lengths[kLengthSymbols + 32] = {};
    if (length_count > 286 || distance_count > kDistanceSymbols) return damaged();
    for (int i = 0; i < code_count; ++i) lengths[kCodeOrder[i]] = static_cast<uint8_t>(bits(3));
    if (!ok() || !lengths_.build(lengths, 19) || lengths_.counts[0] >= 18) return damaged();
    const int all = length_count + distance_count;
    for (int i = 0; i < all && ok();) i += read_lengths(lengths, i, all);
    if (!ok() || lengths[kEndOfBlock] == 0 || !lengths_.build(lengths, length_count) ||
        !distances_.build(lengths + length_count, distance_count))
      return damaged();
    read_codes();
  }

  // Reads one symbol of the lengths at place i; the number of lengths it gave.
  int read_lengths(uint8_t* lengths, int i, int all) {
    const int symbol = read_symbol(lengths_);
    if (symbol < 16) {
      lengths[i] = static_cast<uint8_t>(symbol < 0 ? 0 : symbol);
      return 1;
    }
    if (symbol == 16 && i == 0) damaged();
    const uint8_t value = symbol == 16 && i > 0 ? lengths[i - 1] : 0;
    const int repeats = symbol == 16   ? 3 + static_cast<int>(bits(2))
                        : symbol == 17 ? 3 + static_cast<int>(bits(3))
                                       : 11 + static_cast<int>(bits(7));
    if (i + repeats > all) damaged();
    for (int k = i; k < i + repeats && k < all; ++k) lengths[k] = value;
    return repeats;
  }

  int read_symbol(const Code& code) {
    int word = 0, first = 0, index = 0;
    for (int length = 1; length <= kMaxBits; ++length) {
      word |= static_cast<int>(bits(1));
      const int count = code.counts[length];
      if (word - count < first) return code.symbols[index + word - first];
      index += count;
      first = (first + count) << 1;
      word <<= 1;
    }
    damaged();
    return -1;
  }

  void read_codes() {
    while (ok()) {
      const int symbol = read_symbol(lengths_);
      if (!ok() || symbol == kEndOfBlock) return;
      if (symbol < kEndOfBlock) {
        put(static_cast<uint8_t>(symbol));
      } else {
        copy_match(symbol - kEndOfBlock - 1);
      }
    }
  }

  void copy_match(int symbol) {
    if (symbol >= 29) return damaged();
    const uint32_t length = kLengthBase[symbol] + bits(kLengthBits[symbol]);
    const int distance_symbol = read_symbol(distances_);
    if (!ok()) return;
    const int extra = distance_symbol < 2 ? 0 : distance_symbol / 2 - 1;
    const uint32_t distance = kDistanceBase[distance_symbol] + bits(extra);
    if (distance > written_) return damaged();
    for (uint32_t i = 0; i < length && ok(); ++i)
      put(static_cast<uint8_t>(out_[written_ - distance]));
  }

  // Adler-32, and nothing behind it.
  void check_end() {
    uint32_t low = 1, high = 0;
    for (size_t i = 0; i < written_; ++i) {
      low = (low + static_cast<uint8_t>(out_[i])) % 65521;
      high = (high + low) % 65521;
    }
    uint32_t sum = 0;
    if (size_ - next_ != 4) return damaged();
    for (int i = 0; i < 4; ++i) sum = sum << 8 | data_[next_++];
    if (sum != (high << 16 | low)) damaged();
  }

  const uint8_t* data_;
  size_t size_;
  uint64_t most_;
  Array<char>& out_;
  size_t& written_;
  InflateStatus status_ = InflateStatus::kOk;
  size_t next_ = 0;
  uint32_t held_ = 0;
  int held_bits_ = 0;
  Code lengths_, distances_;
};

}  // namespace

InflateStatus inflate(const uint8_t* data, size_t size, uint64_t most, Array<char>& out,
                      size_t& written) {
  return Inflater(data, size, most, out, written).run();
}

}  // namespace nnr::device
